"""Flags made from the fields of settings, and errors that name the argument in Python and the
flag in the shell.
"""

import dataclasses

import pytest

from k_diffusion.cli.flags import name_flags, run_command
from k_diffusion.core.settings import (
    SettingsError,
    at_least,
    check_settings,
    comma_list,
    one_of,
    setting,
    takes_settings,
)
from k_diffusion.tasks.calibrate import CalibrateSettings
from k_diffusion.tasks.clip import ClipSettings
from k_diffusion.tasks.evaluate import EvaluationSettings
from k_diffusion.tasks.likelihood import LikelihoodSettings
from k_diffusion.tasks.sample import SampleSettings


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a task of this test."""

    place: str = setting(help='where', flags=('place',))
    batch_size: int = setting(4, 'how many at a time')
    rate: float | None = setting(None, 'how fast')
    kind: str = setting('a', 'which', choices=('a', 'b'))
    verify: bool = setting(True, 'take it as it is')
    dry_run: bool = setting(False, 'do nothing')
    ema: bool = setting(True, 'the raw ones', flags=('--raw',))
    cond: list = setting(help='several', factory=list, many='append')
    network: object = setting(None)

    def __post_init__(self):
        check_settings(
            at_least(self, 1, 'batch_size'),
            one_of(self, ('a', 'b'), 'kind'),
            None
            if self.rate is None or self.rate > 0
            else f'rate must be above 0; got {self.rate}',
        )


@takes_settings(Settings)
def task(settings):
    if settings.place == 'nowhere':
        raise ValueError('place must exist; got nowhere; pass dry_run=True or verify=False')
    return settings


def run(*argv, **defaults):
    results = []
    status = run_command(
        'prog',
        task,
        lambda result: results.append(result) or 'done',
        about='A task.',
        example='example:\n  prog here',
        as_json=dataclasses.asdict,
        argv=list(argv),
        **defaults,
    )
    return status, results[0] if results else None


def test_flags_are_the_fields():
    assert run('here') == (0, Settings('here'))
    words = [
        '--batch-size',
        '7',
        '--rate',
        '0.5',
        '--kind',
        'b',
        '--no-verify',
        '--dry-run',
        '--raw',
        '--cond',
        'x',
        '--cond',
        'y',
    ]
    assert run('here', *words) == (0, Settings('here', 7, 0.5, 'b', False, True, False, ['x', 'y']))
    assert run('here', batch_size=9)[1].batch_size == 9


def test_help_shows_meaning_default_and_example(capsys):
    with pytest.raises(SystemExit):
        run('--help')
    text = ' '.join(capsys.readouterr().out.split())
    assert (
        'how many at a time (default: 4)' in text
        and 'example: prog here' in text
        and '--network' not in text
    )
    assert 'take it as it is' in text and '{a,b}' in text


def test_help_shows_the_defaults_of_a_script(capsys):
    with pytest.raises(SystemExit):
        run('--help', batch_size=9, rate=0.5)
    text = ' '.join(capsys.readouterr().out.split())
    assert 'how many at a time (default: 9)' in text and 'how fast (default: 0.5)' in text


def test_lists_with_commas():
    assert comma_list(int, 'whole numbers')('3, 5') == (3, 5) and comma_list(float, 'a pair', 2)(
        '1,2.5'
    ) == (1.0, 2.5)
    for parse, text in (
        (comma_list(int, 'whole numbers'), '3,x'),
        (comma_list(float, 'a pair', 2), '1,2,3'),
    ):
        with pytest.raises(ValueError, match=f'it must be .*; got {text!r}'):
            parse(text)


def test_all_that_is_wrong_is_told_at_once_by_the_name_of_the_argument():
    with pytest.raises(ValueError) as error:
        task('here', batch_size=0, kind='c', rate=-1)
    assert str(error.value) == (
        "batch_size must be at least 1; got 0. kind must be one of a, b; got 'c'. rate must be "
        'above 0; got -1'
    )
    for call in (
        lambda **keys: task('here', **keys),
        lambda **keys: task(Settings('here', **keys)),
    ):
        with pytest.raises(
            ValueError,
            match='^batch_size must be a number; got True: give 1. rate must .*: give 1$',
        ):
            call(batch_size=True, rate=True)
    with pytest.raises(
        TypeError, match="task has no argument 'batchsize', did you mean 'batch_size'"
    ):
        task('here', batchsize=3)
    assert task(Settings('here')) == task('here') == Settings('here')


def test_the_shell_names_flags(capsys):
    assert run('here', '--batch-size', '0', '--rate', '-1')[0] == 1
    assert (
        capsys.readouterr().err
        == 'prog: --batch-size must be at least 1; got 0. --rate must be above 0; got -1.0\n'
    )
    assert run('nowhere')[0] == 1
    assert (
        capsys.readouterr().err
        == 'prog: place must exist; got nowhere; pass --dry-run or --no-verify\n'
    )


def test_json_is_one_line(capsys):
    assert run('here', '--json')[0] == 0
    assert capsys.readouterr().out.startswith('{"place": "here", "batch_size": 4')


def test_values_and_every_kind_of_error_are_translated():
    text = "x; pass batch_size=3, kind='b', rate=... or other=2"
    assert name_flags(text, Settings) == "x; pass --batch-size 3, --kind 'b', --rate or other=2"
    assert name_flags('the new kind must be old', Settings) == 'the new kind must be old'


def test_errors_of_the_disk_name_flags_too(capsys):
    @takes_settings(Settings)
    def fail(settings):
        raise OSError('the disk is full; pass batch_size=1')

    assert run_command('prog', fail, str, about='', example='', argv=['here']) == 1
    assert capsys.readouterr().err == 'prog: the disk is full; pass --batch-size 1\n'


@pytest.mark.parametrize(
    ('kind', 'fields', 'wrong'),
    [
        (
            SampleSettings,
            {'n': 0, 'sampler': 'calibrated', 'schedule': 'karras', 'sigma_min': 1.0},
            ['n', 'schedule', 'sigma_min'],
        ),
        (
            ClipSettings,
            {
                'prompts': [],
                'cutn': 0,
                'schedule': 'x',
                'sigma_start': 3.0,
                'sampler': 'dpm_fast',
                'time_travel_steps': 2,
            },
            ['prompts', 'cutn', 'schedule', 'sigma_start', 'sampler'],
        ),
        (
            CalibrateSettings,
            {'noises': 1, 'batch_size': 0, 'steps': [], 'bases': ['x']},
            ['noises', 'batch_size', 'steps', 'bases'],
        ),
        (
            EvaluationSettings,
            {'n': 1, 'steps': 0, 'sampler': 'x', 'schedule': 'x', 'blocks': 1, 'metrics': ['fidd']},
            ['n', 'steps', 'sampler', 'schedule', 'blocks', 'metrics'],
        ),
        (LikelihoodSettings, {'n': 0}, ['n']),
        (SampleSettings, {'sampler': 5}, ['sampler']),
        (ClipSettings, {'prompts': 'a red apple'}, ['prompts']),
        (CalibrateSettings, {'steps': 5}, ['steps']),
        (SampleSettings, {'classes': '3', 'cond': 'text=a'}, ['classes']),
        (EvaluationSettings, {'metrics': 'fid'}, ['metrics']),
    ],
)
def test_settings_report_each_wrong_field(kind, fields, wrong):
    with pytest.raises(SettingsError) as error:
        kind(**{'checkpoint': 'm.pth', **fields})
    assert [
        problem.split(' must ')[0] for problem in error.value.problems
    ] == wrong and '--' not in str(error.value)
