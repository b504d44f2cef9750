"""Files beside the checkpoints of a run are input like any other: what they hold never ends a
run or a command.
"""

from __future__ import annotations

import json
import shutil
import warnings

import pytest
import torch

from k_diffusion.cli.sample import main as sample
from k_diffusion.cli.train import main as train
from k_diffusion.config import find_checkpoint
from k_diffusion.core import files
from k_diffusion.core.weights import load_checkpoint, load_safetensors
from k_diffusion.sampling.calibration.bases import CORRECTIONS
from k_diffusion.sampling.calibration.solver import Calibration
from k_diffusion.sampling.spectrum import Spectrum
from k_diffusion.tasks import calibrations
from k_diffusion.tasks.checkpoints import checkpoints
from k_diffusion.tasks.ema import ema
from k_diffusion.tasks.processes import World, in_pieces
from k_diffusion.tasks.run.evaluation_hook import read_metrics
from k_diffusion.tasks.run.report import write_report
from k_diffusion.training import CheckpointHook, LogHook, Retention, RunFolder
from k_diffusion.training.log_files import read_log
from k_diffusion.training.posthoc import SnapshotHook

#: Contents that no reader can take for its own.
RAW = {
    'nul bytes': b'\0' * 64,
    'not UTF-8': b'\xff\xfe{"\x80"}',
    'text': b'hello world',
    'deep': b'[' * 100_000,
    'number': b'7',
    'null': b'null',
    'list of text': b'["a", "b"]',
    'key twice': b'{"a": 1, "a": 2}',
    'escape': b'{"\\ud800": "\\u0000"}',
}
#: What may stand in place of each number and text.
LEAVES = {
    'text': '"some text"',
    'null': 'null',
    'list': '[]',
    'dict': '{"a": {}}',
    'NaN': 'NaN',
    'infinity': '1e999',
    'huge': '1' + '0' * 400,
    'huger': '1' + '0' * 5000,
    'negative': '-1',
    'fraction': '0.5',
    'true': 'true',
    'path': '"../../../etc/passwd"',
    'root': '"/"',
    'nul': '"a\\u0000b"',
    'empty': '""',
}


def with_leaves(value, leaf):
    """JSON text of a value with every number and text replaced."""
    if isinstance(value, dict):
        return (
            '{'
            + ', '.join(
                f'{json.dumps(key)}: {with_leaves(item, leaf)}' for key, item in value.items()
            )
            + '}'
        )
    if isinstance(value, list):
        return '[' + ', '.join(with_leaves(item, leaf) for item in value) + ']'
    return leaf


def without_keys(value):
    """A value without the first key of its innermost objects."""
    if not isinstance(value, dict):
        return value
    inner = {key: without_keys(item) for key, item in value.items()}
    return (
        inner
        if any(isinstance(item, dict) for item in value.values())
        else dict(list(value.items())[1:])
    )


def damaged(content, how):
    """A text of JSON, or of lines of JSON, damaged."""
    kind, name = how
    if kind == 'raw':
        return RAW[name]
    if name == 'cut':
        return content[: len(content) // 2]
    if name == 'empty file':
        return b''
    try:
        value = json.loads(content)
        change = without_keys if name == 'key missing' else lambda v: v
        return (
            json.dumps(change(value)) if name == 'key missing' else with_leaves(value, LEAVES[name])
        ).encode()
    except ValueError:
        return b'\n'.join(damaged(line, how) for line in content.splitlines()) + b'\n'


HOWS = (
    [('raw', name) for name in RAW]
    + [('file', 'cut'), ('file', 'empty file'), ('file', 'key missing')]
    + [('leaves', name) for name in LEAVES]
)
each_damage = pytest.mark.parametrize('how', HOWS, ids=lambda how: f'{how[0]} {how[1]}')


@pytest.fixture
def notes(monkeypatch):
    """The notes of a process that has told nothing yet."""
    monkeypatch.setattr(files, '_notes', set())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        yield lambda path: [str(note.message) for note in caught if path.name in str(note.message)]


@pytest.fixture(scope='module')
def toy():
    import importlib.util
    from pathlib import Path

    spec = importlib.util.spec_from_file_location(
        'toy_of_training', Path(__file__).parents[1] / 'training' / 'toy.py'
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def base(toy, tmp_path_factory):
    """The folder of a run of three steps with a log, snapshots, pins and metrics."""
    folder = RunFolder(tmp_path_factory.mktemp('base'), 'toy')
    trainer = toy.make_trainer(
        end_step=3, hooks=[LogHook(folder.path / 'toy_log.jsonl', 1), CheckpointHook(folder, 1)]
    )
    trainer.hooks.append(
        SnapshotHook(trainer.ema_model, folder.path, 'toy', 1, {'model': {}}, (0.05, 0.1))
    )
    trainer.run()
    folder.pins_path.write_text('[1]')
    (folder.path / 'toy_metrics.csv').write_text(
        'step,time,loss,fid,kid\n1,1.5,0.5,10,0.25\n2,2.5,0.25,8,0.125\n'
    )
    return folder.path


@pytest.fixture
def folder(base, tmp_path):
    shutil.copytree(base, tmp_path / 'run')
    return RunFolder(tmp_path / 'run', 'toy', keep=Retention(last=1, best=0))


def go_on(toy, folder):
    """Use a folder as a run does: resume, log, save, rotate, report."""
    path, state = folder.newest()
    trainer = toy.make_trainer(
        end_step=4, hooks=[LogHook(folder.path / 'toy_log.jsonl', 1), CheckpointHook(folder, 1)]
    )
    trainer.load_state_dict(state, path)
    assert trainer.run() == 'done'
    write_report(folder.path, 'toy', {})
    assert load_checkpoint(folder.checkpoint_path(4))['step'] == 4
    assert find_checkpoint(folder.path) == folder.checkpoint_path(4)
    return [entry.step for entry in checkpoints(folder.path)]


@each_damage
@pytest.mark.parametrize('name', ['manifest.json', 'state.json', 'pinned.json', 'log.jsonl'])
def test_a_run_goes_on_beside_a_damaged_file(toy, folder, notes, name, how):
    path = folder.path / f'toy_{name}'
    path.write_bytes(damaged(path.read_bytes(), how) + b'\n')
    assert find_checkpoint(folder.path).name == 'toy_00000003.pth'
    steps = go_on(toy, folder)
    assert len(notes(path)) <= 1
    if how[0] == 'raw':
        assert len(notes(path)) == 1
    # Where the pins cannot be read nothing is deleted; else the pinned step 1 stays.
    pins = {'key missing': [4, 1], 'negative': [4]}.get(how[1], [4, 3, 2, 1])
    assert steps == (pins if name == 'pinned.json' else [4, 1])
    assert [line['step'] for line in read_log(folder.path / 'toy_log.jsonl')][-1] == 4


@pytest.mark.parametrize(
    'value',
    [
        '/',
        '/etc/passwd',
        '..',
        '',
        'other_00000003.pth',
        'toy_00000003.pth/x',
        'toy_0000000\u0663.pth',
        3,
        None,
    ],
)
def test_a_state_file_that_names_something_else_is_passed_over(folder, notes, value):
    folder.pointer_path.write_text(json.dumps({'latest_checkpoint': value}))
    assert folder.newest()[0] == find_checkpoint(folder.path) == folder.checkpoint_path(3)
    assert len(notes(folder.pointer_path)) == 1


@pytest.mark.parametrize(
    'content',
    [
        *RAW.values(),
        b'',
        b'step,time,loss,fid,kid\nnan,1,1,1,1\n1,inf,1,1,1\n-1,1,1,1,1\n1,2\nx,y,z,u,v\n',
    ],
)
def test_damaged_metrics_are_passed_over(folder, notes, content):
    path = folder.path / 'toy_metrics.csv'
    good = path.read_bytes()
    path.write_bytes(good + content)
    assert [(row['step'], row['fid']) for row in read_metrics(path)] == [(1.0, 10.0), (2.0, 8.0)]
    assert len(notes(path)) == (1 if content else 0)


@pytest.mark.parametrize('content', [*RAW.values(), b'', None])
def test_a_damaged_snapshot_is_passed_over(folder, notes, content):
    """The remaining files are read as if the damaged one had never been there."""
    path = folder.path / 'toy_ema_00000002.safetensors'
    whole = path.read_bytes()
    path.unlink()
    expected = load_safetensors(
        ema(folder.path, 0.07, folder.path / 'expected.safetensors', name='toy').path
    )
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 64]) if content is None else content)
    weights = load_safetensors(
        ema(folder.path, 0.07, folder.path / 'found.safetensors', name='toy').path
    )
    assert weights.keys() == expected.keys() and all(
        torch.equal(weights[key], expected[key]) for key in weights
    )
    assert len(notes(path)) == 1


@pytest.mark.parametrize('content', [*RAW.values(), b'', None])
def test_damaged_pieces_are_made_again(tmp_path, notes, content):
    def rows(items):
        return torch.tensor([[float(i), i * i] for i in items])

    expected = in_pieces(tmp_path / 'pieces', 300, rows, World())
    path = next(iter(sorted((tmp_path / 'pieces').iterdir())))
    whole = path.read_bytes()
    path.write_bytes(
        whole[:-5] + bytes([whole[-5] ^ 64]) + whole[-4:] if content is None else content
    )
    assert torch.equal(in_pieces(tmp_path / 'pieces', 300, rows, World()), expected)
    assert torch.equal(expected, torch.tensor([[float(i), i * i] for i in range(300)]))
    assert len(notes(path)) == 1 and path.read_bytes() == whole


@pytest.fixture(scope='module')
def calibrated(trained, tmp_path_factory):
    """A run with a calibration, beside which nothing else is damaged."""
    folder = tmp_path_factory.mktemp('calibrated') / 'run'
    shutil.copytree(trained, folder)
    spectrum = Spectrum(torch.zeros(1, 16, 16), torch.ones(1, 16, 16), 'cosines')
    calibrations.add(
        calibrations.file_of(folder),
        [Calibration('eab', (40.0, 1.0, 0.1, 0.0), ((0.0,) * CORRECTIONS['eab'],) * 2, spectrum)],
    )
    assert len(calibrations.read(calibrations.file_of(folder))) == 1
    return folder


@each_damage
def test_a_damaged_calibration_is_passed_over(calibrated, tmp_path, how):
    """Each number and text in turn would be many; all at once is what `from_dict` sees."""
    good = calibrations.file_of(calibrated)
    path = tmp_path / good.name
    path.write_bytes(damaged(good.read_bytes(), how))
    try:
        assert calibrations.read(path) == []
    except ValueError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize(
    'how',
    [('raw', 'not UTF-8'), ('raw', 'escape'), ('leaves', 'huge'), ('leaves', 'root')],
    ids=lambda how: how[1],
)
def test_commands_pass_over_all_of_them_at_once(calibrated, tmp_path, capsys, monkeypatch, how):
    """Train goes on, samples are drawn, each file is named once by each command."""
    folder = tmp_path / 'run'
    shutil.copytree(calibrated, folder)
    (folder / 'tiny_pinned.json').write_text('[3]')
    names = [
        'tiny_manifest.json',
        'tiny_state.json',
        'tiny_pinned.json',
        'tiny_log.jsonl',
        'tiny_00000003_calibrated.json',
    ]
    for name in names:
        (folder / name).write_bytes(damaged((folder / name).read_bytes(), how) + b'\n')
    monkeypatch.setattr(files, '_notes', set())
    warnings.simplefilter('always')
    out = ['--out', str(tmp_path / 'samples'), '-n', '2', '--steps', '2', '--device', 'cpu']
    assert sample(['--checkpoint', str(folder), *out]) == 0
    stderr = capsys.readouterr().err
    assert stderr.count('note:') == len([name for name in names if name in stderr]) == 3
    monkeypatch.setattr(files, '_notes', set())
    arguments = [
        '--config',
        str(calibrated.parent / 'tiny.json'),
        '--run-dir',
        str(folder),
        '--name',
        'tiny',
        '--end-step',
        '4',
        '--device',
        'cpu',
        '--demo-every',
        '0',
        '--evaluate-n',
        '0',
        '--keep-last',
        '1',
    ]
    shutil.copy(calibrated / 'tiny_config.json', calibrated.parent / 'tiny.json')
    assert train(arguments) == 0
    stderr = capsys.readouterr().err
    for name in names[:4]:
        assert stderr.count(name) == 1
    assert sorted(path.name for path in folder.glob('*.pth')) == [
        'tiny_00000003.pth',
        'tiny_00000004.pth',
    ]
