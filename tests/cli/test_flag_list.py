"""Every flag of the scripts and commands stays: its spelling, its default, its value or none."""

import importlib
import json
import runpy
from pathlib import Path

import pytest

from k_diffusion.cli import entry

ROOT = Path(__file__).resolve().parents[2]
LIST = json.loads((ROOT / 'tests/golden/flags.json').read_text())


class ParserMade(BaseException):
    """Ends a command as soon as it has made its parser."""


def flags_of(monkeypatch, call):
    """The flags of the parser that a command makes, in the form of the list."""

    def stop(parser, *args, **kwargs):
        raise ParserMade(parser)

    monkeypatch.setattr(entry.Parser, 'parse_args', stop)
    with pytest.raises(ParserMade) as error:
        call()
    flags = {}
    for action in error.value.args[0]._actions:
        default = json.loads(json.dumps(action.default, default=str))
        row = {'default': default, 'value': action.nargs != 0}
        if action.required and action.option_strings:
            row['required'] = True
        flags.update(dict.fromkeys(action.option_strings or [action.dest], row))
    return flags


def differences(expected, actual, default_may_be_left_open=False):
    """Yield what differs; of a positional argument only that it is missing."""
    for name, row in expected.items():
        have = actual.get(name)
        if have is None:
            yield f'{name} is missing'
        elif name.startswith('-'):
            if default_may_be_left_open and have['default'] is None:
                row = {**row, 'default': None}
            if any(have[key] != row[key] for key in ('default', 'value')):
                yield f'{name}: {row} was {have}'


@pytest.mark.parametrize('command', LIST['commands'])
def test_commands_keep_their_flags(monkeypatch, command):
    first, *more = command.split()
    module = importlib.import_module(f'k_diffusion.cli.{entry.COMMANDS[first][0]}')
    expected = LIST['commands'][command]
    actual = flags_of(monkeypatch, lambda: module.main(more))
    assert list(differences(expected, actual)) == []
    required = {name for name, row in actual.items() if row.get('required')}
    dropped = {'--config'} if command == 'train' else set()  # --data makes a config
    assert required == {name for name, row in expected.items() if row.get('required')} - dropped


@pytest.mark.parametrize('script', LIST['scripts'])
def test_scripts_keep_the_flags_of_the_original(monkeypatch, script):
    actual = flags_of(monkeypatch, lambda: runpy.run_path(str(ROOT / script), run_name='__main__'))
    assert list(differences(LIST['scripts'][script], actual)) == []
    assert list(differences(LIST['original'][script], actual, default_may_be_left_open=True)) == []


def test_a_changed_flag_is_seen():
    flags = {'-n': {'default': 64, 'value': True}, '--raw': {'default': False, 'value': False}}
    assert list(differences(flags, flags)) == []
    assert len(list(differences(flags, {'-n': flags['-n']}))) == 1
    for changed in ({'default': 65, 'value': True}, {'default': 64, 'value': False}):
        assert len(list(differences(flags, {**flags, '-n': changed}))) == 1
    assert len(list(differences(flags, {**flags, '-n': {'default': None, 'value': True}}))) == 1
    assert not list(differences(flags, {**flags, '-n': {'default': None, 'value': True}}, True))
