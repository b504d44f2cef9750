"""Measuring by its doors: evaluate and likelihood, alone, in two processes and gone on with;
evaluation during training.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image
from torch import nn

import k_diffusion as K
from k_diffusion.cli.evaluate import main as evaluate_main
from k_diffusion.cli.likelihood import main as likelihood_main
from k_diffusion.cli.train import main as train_main
from k_diffusion.core.weights import load_checkpoint
from k_diffusion.tasks import drawing
from k_diffusion.tasks.evaluate import EvaluationSettings, evaluate
from k_diffusion.tasks.likelihood import LikelihoodSettings, likelihood
from k_diffusion.tasks.processes import CHUNK, World, in_pieces

ROOT = Path(__file__).parents[2]


class Corners(nn.Module):
    """Sixteen features of a picture: means of its patches."""

    def forward(self, x):
        return torch.nn.functional.avg_pool2d(x, 4).flatten(1)


@pytest.fixture(scope='module')
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp('script') / 'corners.pt'
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.jit.save(torch.jit.script(Corners()), str(path))
    return str(path)


def two_processes(command, *arguments):
    launcher = [
        sys.executable,
        '-m',
        'torch.distributed.run',
        '--standalone',
        '--nproc-per-node',
        '2',
        '-m',
        'k_diffusion.cli',
        command,
    ]
    env = {
        **os.environ,
        'OMP_NUM_THREADS': '1',
        'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]),
    }
    done = subprocess.run(
        [*launcher, *map(str, arguments)],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_evaluate(trained, script, tmp_path, capsys):
    """The values are those of the metrics on the same samples, whatever the batch size and the
    number of processes.
    """
    shared = [
        '--checkpoint',
        trained,
        '--extractor',
        script,
        '--allow-code',
        '-n',
        '300',
        '--metrics',
        'fid,kid,precision_recall,copies',
        '--steps',
        '4',
        '--reference-n',
        '400',
        '--cache',
        tmp_path / 'cache',
        '--blocks',
        '5',
        '--device',
        'cpu',
        '--json',
    ]
    assert evaluate_main([*map(str, shared), '--out', str(tmp_path / 'one')]) == 0
    out = capsys.readouterr()
    values = json.loads(out.out)
    assert (
        'fewer than 10,000' in out.err
        and values['n'] == 300
        and values['fid'] > 0
        and values['fid_stderr'] > 0
    )
    assert json.loads((tmp_path / 'one' / 'metrics.json').read_text()) == values
    assert Image.open(tmp_path / 'one' / 'copies.png').size[0] > 6 * 32
    (two,) = two_processes('evaluate', *shared, '--out', tmp_path / 'two', '--batch-size', '50')
    for key, value in values.items():
        assert two[key] == (
            pytest.approx(value, rel=1e-3, abs=1e-3) if isinstance(value, float) else value
        ), key
    pieces = sorted((tmp_path / 'two').glob('pieces-*/*'))
    assert [path.name for path in pieces] == [
        '00000000-00000256.safetensors',
        '00000256-00000300.safetensors',
    ]
    rows = torch.cat([K.core.weights.load_safetensors(path)['rows'] for path in pieces])
    digits = K.data.open_dataset(K.data.DemoConfig(), (16, 16), 1)
    pictures = torch.stack(
        [digits[i]['image'] for i in K.data.permutation(0, 0, 10_000)[:400].tolist()]
    )
    assert values['fid'] == pytest.approx(
        K.evaluation.fid(rows, Corners()(pictures / 127.5 - 1)).item(), rel=1e-3
    )


def test_evaluate_goes_on_where_it_stopped(trained, tmp_path):
    batch_sizes = []

    def extractor(x):
        batch_sizes.append(len(x))
        if stop and len(batch_sizes) > stop:
            raise KeyboardInterrupt
        return Corners()(x)

    extractor.fingerprint = 'corners'
    settings = EvaluationSettings(
        trained,
        600,
        ('fid',),
        extractor,
        reference_n=300,
        out=tmp_path / 'out',
        batch_size=256,
        steps=2,
        cache=tmp_path / 'cache',
        device='cpu',
        show=False,
    )
    stop = 3  # two batches of the reference, one of samples
    with pytest.raises(KeyboardInterrupt):
        evaluate(settings)
    stop = 0
    batch_sizes.clear()
    values = evaluate(settings).values
    assert batch_sizes == [256, 600 - 2 * 256]
    batch_sizes.clear()
    assert evaluate(settings).values == values and not batch_sizes


class Unwaiting(World):
    def wait(self):
        pass


def test_pieces_are_shared_and_kept(tmp_path):
    did = []

    def work(items):
        did.append(items.start)
        return torch.tensor([float(i) for i in items])

    n = 2 * CHUNK + 5
    with pytest.raises(FileNotFoundError):  # the other process has done nothing yet
        in_pieces(tmp_path, n, work, Unwaiting(2, 1))
    assert did == [CHUNK]
    rows = in_pieces(tmp_path, n, work, World())
    assert did == [CHUNK, 0, 2 * CHUNK] and rows.tolist() == list(range(n))


def test_likelihood(trained, tmp_path, capsys):
    shared = ['--checkpoint', trained, '-n', '20', '--steps', '2', '--device', 'cpu', '--json']
    assert likelihood_main([*map(str, shared), '--out', str(tmp_path / 'one')]) == 0
    result = json.loads(capsys.readouterr().out)
    lines = (tmp_path / 'one' / 'bits.csv').read_text().splitlines()
    bits = torch.tensor([float(line.split(',')[2]) for line in lines[1:]], dtype=torch.float64)
    assert lines[0] == 'picture,class,bits_per_dim' and len(bits) == 20 and bits.std() > 0
    assert result['bits_per_dim'] == pytest.approx(bits.mean().item(), abs=1e-5)
    assert result['stderr'] == pytest.approx(bits.std().item() / 20**0.5, rel=1e-3)
    ElementTree.parse(tmp_path / 'one' / 'bits.svg')
    (two,) = two_processes('likelihood', *shared, '--out', tmp_path / 'two', '--batch-size', '7')
    assert two['bits_per_dim'] == pytest.approx(result['bits_per_dim'], abs=1e-4)
    exact = likelihood(
        LikelihoodSettings(
            trained, n=2, steps=2, exact=True, out=tmp_path / 'exact', device='cpu', show=False
        )
    )
    many = likelihood(
        LikelihoodSettings(
            trained, n=2, steps=2, probes=40, out=tmp_path / 'many', device='cpu', show=False
        )
    )
    assert exact.bits == pytest.approx(many.bits, abs=0.1)


def test_a_folder_of_pictures_is_a_reference(trained, script, tmp_path):
    (tmp_path / 'pictures').mkdir()
    for i in range(30):
        Image.new('L', (20, 24), 8 * i).save(tmp_path / 'pictures' / f'{i}.png')
    flat = EvaluationSettings(
        trained,
        32,
        ('fid',),
        script,
        str(tmp_path / 'pictures'),
        out=tmp_path / 'out',
        steps=2,
        blocks=0,
        allow_code=True,
        cache=tmp_path / 'cache',
        device='cpu',
        show=False,
    )
    result = evaluate(flat)
    assert result.facts['reference_n'] == 30 and result.values['fid'] > 1
    settings = LikelihoodSettings(
        trained,
        str(tmp_path / 'pictures'),
        n=4,
        steps=2,
        out=tmp_path / 'bits',
        device='cpu',
        show=False,
    )
    bits = likelihood(settings)
    assert len(bits.bits) == 4


@pytest.mark.parametrize(
    'arguments, complaint',
    [
        (['--metrics', 'fidd'], "did you mean 'fid'"),
        (['--extractor', 'incepton'], "did you mean 'inception'"),
        (['--extractor', 'nowhere.pt'], 'no feature extractor at nowhere.pt'),
        (['--dataset', 'dmeo'], "did you mean 'demo'"),
        (['--dataset', 'demo/test'], "'demo' has no splits"),
        (['--dataset', 'mnist/tset:nowhere'], "split is 'tset'"),
        (['-n', '1'], '-n must be at least 2; got 1'),
        (['--checkpoint', 'nowhere.pth'], 'no checkpoint at nowhere.pth'),
    ],
)
def test_mistakes_of_evaluate_are_one_sentence(trained, tmp_path, capsys, arguments, complaint):
    places = ['--cache', str(tmp_path / 'cache'), '--out', str(tmp_path / 'out')]
    assert (
        evaluate_main(
            ['--checkpoint', str(trained), '-n', '8', '--device', 'cpu', *places, *arguments]
        )
        == 1
    )
    err = capsys.readouterr().err
    assert complaint in err and 'Traceback' not in err and not (tmp_path / 'out').exists()


def train(config, folder, *arguments):
    shared = [
        '--config',
        config,
        '--run-dir',
        str(folder),
        '--name',
        'tiny',
        '--device',
        'cpu',
        '--demo-every',
        '0',
    ]
    return train_main([*shared, *map(str, arguments)])


def test_evaluation_during_training_changes_nothing_and_is_written_down(
    tiny, script, tmp_path, capsys
):
    config, measured = (
        tiny(),
        ('--evaluate-every', 2, '--evaluate-n', 20, '--evaluate-with', script, '--allow-code'),
    )
    assert train(config, tmp_path / 'blind', '--evaluate-n', 0, '--end-step', 5) == 0
    assert train(config, tmp_path / 'seeing', *measured, '--end-step', 5, '--save-every', 2) == 0
    blind, seeing = (
        load_checkpoint(tmp_path / name / 'tiny_00000005.pth')['model']
        for name in ('blind', 'seeing')
    )
    assert all(torch.equal(value, seeing[key]) for key, value in blind.items())
    rows = (tmp_path / 'seeing' / 'tiny_metrics.csv').read_text().splitlines()
    assert rows[0] == 'step,time,loss,fid,kid' and [row.split(',')[0] for row in rows[1:]] == [
        '2',
        '4',
    ]
    assert all(float(row.split(',')[3]) > 0 for row in rows[1:])
    drawing = ElementTree.parse(tmp_path / 'seeing' / 'tiny_metrics.svg')
    assert len(drawing.findall('.//{*}circle')) == 4
    err = capsys.readouterr().err
    assert 'step 4: fid' in err and err.count('fewer than 10,000') == 1

    assert (
        train(
            config,
            tmp_path / 'seeing',
            *measured,
            '--resume',
            tmp_path / 'seeing' / 'tiny_00000002.pth',
            '--end-step',
            4,
        )
        == 0
    )
    again = (tmp_path / 'seeing' / 'tiny_metrics.csv').read_text().splitlines()
    assert again[2].split(',')[3:] == rows[2].split(',')[3:] and len(again) == 3
    assert train(config, tmp_path / 'seeing', *measured, '--evaluate-only', '--json') == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])['status'] == 'evaluated'
    only = (tmp_path / 'seeing' / 'tiny_metrics.csv').read_text().splitlines()
    assert len(only) == 3 and only[2].split(',')[3:] == rows[2].split(',')[3:]


def test_a_stop_in_the_middle_of_an_evaluation(tiny, script, tmp_path, capsys, monkeypatch):
    """Is heard at the next step of the sampler: the run saves and leaves with the signal's
    status, and no number is written.
    """

    def generate(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return drawing.generate_for_real(*args, **kwargs)

    monkeypatch.setattr(drawing, 'generate_for_real', drawing.generate, raising=False)
    monkeypatch.setattr(drawing, 'generate', generate)
    status = train(
        tiny(),
        tmp_path / 'run',
        '--evaluate-every',
        2,
        '--evaluate-n',
        20,
        '--evaluate-with',
        script,
        '--allow-code',
        '--end-step',
        5,
    )
    assert status == 143 and 'the evaluation of step 2 is cancelled' in capsys.readouterr().err
    assert (tmp_path / 'run' / 'tiny_00000002.pth').exists() and not (
        tmp_path / 'run' / 'tiny_metrics.csv'
    ).exists()


def test_without_an_extractor_training_goes_on(tiny, tmp_path, capsys):
    assert (
        train(
            tiny(),
            tmp_path / 'run',
            '--evaluate-every',
            1,
            '--evaluate-with',
            'nowhere.pt',
            '--end-step',
            3,
        )
        == 0
    )
    err = capsys.readouterr().err
    assert (
        err.count('evaluation is skipped: no feature extractor at nowhere.pt') == 1
        and 'tiny done at step 3' in err
    )
    assert not (tmp_path / 'run' / 'tiny_metrics.csv').exists()


def test_evaluating_alone_needs_a_checkpoint(tiny, tmp_path, capsys):
    assert train(tiny(), tmp_path / 'run', '--evaluate-only') == 1
    assert 'needs a checkpoint of this run' in capsys.readouterr().err


@pytest.mark.slow
def test_a_classifier_measures_a_run_of_two_processes(tiny, tmp_path):
    shared = [
        '--config',
        tiny(('model', 'dropout_rate', 0.0)),
        '--name',
        'tiny',
        '--demo-every',
        '0',
        '--evaluate-every',
        '2',
        '--evaluate-n',
        '21',
        '--evaluate-with',
        'classifier',
        '--end-step',
        '2',
        '--device',
        'cpu',
    ]
    two_processes('train', *shared, '--batch-size', '4', '--run-dir', tmp_path / 'two')
    assert train_main([*shared, '--batch-size', '8', '--run-dir', str(tmp_path / 'one')]) == 0
    one, two = (
        (tmp_path / name / 'tiny_metrics.csv').read_text().splitlines()[1].split(',')
        for name in ('one', 'two')
    )
    assert [float(value) for value in two[3:]] == pytest.approx(
        [float(value) for value in one[3:]], rel=1e-3
    )
