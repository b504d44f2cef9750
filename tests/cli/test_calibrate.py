"""k-diffusion calibrate, and sample with what it made."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from k_diffusion.cli import calibrate
from k_diffusion.config import load_model
from k_diffusion.core.weights import fingerprint, load_checkpoint, save_checkpoint
from k_diffusion.tasks import calibrate as calibrate_task
from k_diffusion.tasks import calibrations, convert, guiding, sample

FAST = ['--noises', '2', '--bases', 'rab', '--device', 'cpu']


@pytest.fixture(scope='module')
def calibrated(trained, tmp_path_factory):
    """A copy of a run with calibrations for two numbers of steps, without guidance."""
    folder = tmp_path_factory.mktemp('calibrated') / 'run'
    shutil.copytree(trained, folder)
    assert calibrate.main(['--checkpoint', str(folder), '--steps', '2,3', *FAST]) == 0
    return folder


def draw(folder, out, **options):
    return sample.sample(folder, 2, out, device='cpu', **{'steps': 3, **options}).images


def test_what_it_writes(calibrated, capsys):
    file = calibrated / 'tiny_00000003_calibrated.json'
    assert file == calibrations.file_of(calibrated) and file.stat().st_size < 20_000
    assert [c.steps for c in calibrations.read(file)] == [2, 3]
    assert (
        calibrate.main(
            ['--checkpoint', str(calibrated), '--steps', '2', '--guidance', '2', '--json', *FAST]
        )
        == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert (
        report['file'] == str(file)
        and report['calibrations'][0]['steps'] == 2
        and report['calibrations'][0]['rms'] > 0
    )
    assert [(c.steps, c.guidance) for c in calibrations.read(file)] == [
        (2, 1.0),
        (2, 2.0),
        (3, 1.0),
    ]


def test_sample_takes_it_by_itself(calibrated, tmp_path, caplog):
    caplog.set_level('INFO', 'k_diffusion')
    ours = draw(calibrated, tmp_path / 'a')
    assert 'sampling with the calibrated sampler for 3 steps' in caplog.text
    assert (
        torch.equal(ours, draw(calibrated, tmp_path / 'b', sampler='calibrated'))
        and ours.std() > 0.05
    )
    assert torch.allclose(
        ours[:1],
        sample.sample(calibrated, 1, tmp_path / 'one', steps=3, device='cpu').images,
        atol=1e-5,
    )
    caplog.clear()
    for i, other in enumerate(
        (
            {'steps': 4},
            {'sampler': 'dpmpp_2m'},
            {'schedule': 'karras'},
            {'guidance': 3.0},
            {'sigma_min': 0.05},
        )
    ):
        assert not torch.equal(ours, draw(calibrated, tmp_path / str(i), **other))
    assert 'calibrated' not in caplog.text


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'steps': 9}, 'for steps 9 and guidance 1; run calibrate for them'),
        ({'guidance': 3.0}, 'and guidance 3;'),
        ({'schedule': 'karras'}, 'has its own noise levels'),
    ],
)
def test_what_was_not_made_is_refused(calibrated, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        draw(calibrated, tmp_path / 'x', sampler='calibrated', **options)
    assert not (tmp_path / 'x').exists()


def test_other_weights_are_told_apart(calibrated, tmp_path):
    folder = tmp_path / 'run'
    shutil.copytree(calibrated, folder)
    path = folder / 'tiny_00000003.pth'
    checkpoint = load_checkpoint(path)
    name = next(
        key
        for key, value in checkpoint['model_ema'].items()
        if value.is_floating_point() and value.ndim > 1
    )
    checkpoint['model_ema'][name] = checkpoint['model_ema'][name] + 1e-3
    save_checkpoint(path, checkpoint)
    with pytest.raises(ValueError, match='was calibrated for other weights'):
        draw(path, tmp_path / 'a', sampler='calibrated', verify=False)
    with pytest.warns(UserWarning, match='the calibrated sampler is not used: .* other weights'):
        assert draw(path, tmp_path / 'b', verify=False).std() > 0.05


def test_a_damaged_file_is_passed_over_or_refused(calibrated, tmp_path):
    folder = tmp_path / 'run'
    shutil.copytree(calibrated, folder)
    file = calibrations.file_of(folder)
    file.write_text(file.read_text()[:300])
    with pytest.warns(UserWarning, match='is not valid JSON'):
        draw(folder, tmp_path / 'a')
    with pytest.raises(ValueError, match='is not valid JSON'):
        draw(folder, tmp_path / 'b', sampler='calibrated')
    assert calibrate.main(['--checkpoint', str(folder), '--steps', '2', *FAST]) == 1


def test_the_fingerprint(calibrated, tmp_path):
    path = calibrated / 'tiny_00000003.pth'
    file = convert.convert(path, tmp_path / 'm.safetensors', 'fp32')
    first, second = (fingerprint(load_model(each)[0].state_dict()) for each in (path, file))
    assert first == second
    weights = dict(load_model(path)[0].state_dict())
    assert fingerprint(dict(reversed(weights.items()))) == first
    assert fingerprint({**weights, 'more': torch.zeros(1)}) != first
    assert (
        fingerprint(
            {
                key: value * (1 + 1e-6) if value.is_floating_point() else value
                for key, value in weights.items()
            }
        )
        != first
    )


def test_wrong_usage(trained, capsys):
    assert calibrate.main(['--checkpoint', str(trained), '--noises', '1']) == 1
    assert '--noises must be at least 2; got 1' in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        calibrate.main(['--checkpoint', str(trained), '--step', 'a'])
    assert stop.value.code == 2


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--bases', 'rab,foo'], "unknown base 'foo'"),
        (['--bases', ''], "unknown base ''"),
        (['--out', 'nowhere/x.json'], '--out must be in a writable folder; got nowhere/x.json'),
    ],
)
def test_mistakes_are_found_before_the_work(calibrated, monkeypatch, capsys, arguments, words):
    monkeypatch.setattr(calibrate_task, 'open_model', lambda *_: pytest.fail('the work was begun'))
    assert calibrate.main(['--checkpoint', str(calibrated), '--device', 'cpu', *arguments]) != 0
    assert words in capsys.readouterr().err


def test_a_damaged_file_is_named_with_the_way_out(calibrated, tmp_path, capsys):
    folder = tmp_path / 'run'
    shutil.copytree(calibrated, folder)
    calibrations.file_of(folder).write_text('{"calibrations": [{}]}')
    assert calibrate.main(['--checkpoint', str(folder), '--steps', '2', *FAST]) != 0
    assert f'delete {calibrations.file_of(folder)}' in capsys.readouterr().err
    calibrations.file_of(folder).unlink()
    assert calibrate.main(['--checkpoint', str(folder), '--steps', '2,2', *FAST]) == 0
    assert [c.steps for c in calibrations.read(calibrations.file_of(folder))] == [2]


@pytest.fixture
def copied(trained, tmp_path):
    folder = tmp_path / 'run'
    shutil.copytree(trained, folder)
    return folder


def unfinished(folder):
    return folder / 'tiny_00000003_calibrated_unfinished.json'


def stop_at(monkeypatch, steps, fit=None):
    """Have Ctrl-C come while the sampler of so many steps is fitted; list what is fitted.

    fit: what fits in place of the real one, which is slow.
    """
    fitted = []
    real = fit or calibrate_task.fit_sampler

    def stopped(*arguments, **options):
        if options['steps'] == steps:
            raise KeyboardInterrupt
        fitted.append(options['steps'])
        return real(*arguments, **options)

    monkeypatch.setattr(calibrate_task, 'fit_sampler', stopped)
    return fitted


@pytest.fixture
def quick(calibrated, monkeypatch):
    """A fit that takes no time, of converged runs that take none."""
    plain = calibrations.read(calibrations.file_of(calibrated))[0]
    monkeypatch.setattr(
        calibrate_task,
        'Teacher',
        lambda *arguments, **options: SimpleNamespace(x=None, sigma_max=plain.sigmas[0]),
    )

    def fit(*arguments, steps, model, guidance, conditions, guidance_interval, **options):
        return replace(
            plain,
            sigmas=(*(40.0 / 2**i for i in range(steps + 1)), 0.0),
            corrections=plain.corrections[:1] * steps,
            model=model,
            guidance=guidance,
            conditions=conditions,
            guidance_interval=guidance_interval,
        )

    return fit


def test_a_call_that_was_interrupted_goes_on(copied, tmp_path, monkeypatch, capsys):
    straight = tmp_path / 'straight.json'
    arguments = ['--checkpoint', str(copied), '--steps', '2,1', *FAST, '--noises', '2']
    assert calibrate.main([*arguments, '--out', str(straight)]) == 0
    for last, done in ((1, [2]), (None, [1])):
        with monkeypatch.context() as patch:
            fitted = stop_at(patch, last)
            assert calibrate.main(arguments) == (130 if last else 0)
        assert fitted == done
        assert unfinished(copied).exists() == bool(last)
        assert calibrations.file_of(copied).exists() == (not last)
    assert 'the samplers for 2 steps are fitted already' in capsys.readouterr().err
    assert calibrations.file_of(copied).read_bytes() == straight.read_bytes()


@pytest.mark.parametrize(
    'other',
    [
        ['--seed', '1'],
        ['--noises', '5'],
        ['--guidance', '2'],
        ['--sigma-min', '0.05'],
        ['--classes', '3'],
        ['--bases', 'sei'],
        ['--batch-size', '3'],
        ['--raw'],
    ],
)
def test_what_was_fitted_with_other_settings_is_not_taken(copied, monkeypatch, quick, other):
    command = ['--checkpoint', str(copied), '--steps', '1,2', *FAST]
    stop_at(monkeypatch, 2, quick)
    assert calibrate.main(command) == 130
    fitted = stop_at(monkeypatch, 2, quick)
    assert calibrate.main([*command, *other]) == 130 and fitted == [1]


def test_what_is_not_asked_for_again_stays(copied, monkeypatch, quick):
    command = ['--checkpoint', str(copied), *FAST]
    stop_at(monkeypatch, 3, quick)
    assert calibrate.main([*command, '--steps', '1,2,3']) == 130
    fitted = stop_at(monkeypatch, None, quick)
    assert calibrate.main([*command, '--steps', '2']) == 0
    assert [c.steps for c in calibrations.read(calibrations.file_of(copied))] == [2]
    assert calibrate.main([*command, '--steps', '1']) == 0 and fitted == []
    assert [c.steps for c in calibrations.read(calibrations.file_of(copied))] == [1, 2]
    assert not unfinished(copied).exists()


@pytest.mark.parametrize(
    'text', ['', '[]', '{"settings": 3}', '\ud800', '{"settings": "x", "calibrations": 3}']
)
def test_a_damaged_unfinished_file_is_passed_over(copied, monkeypatch, quick, text):
    unfinished(copied).write_bytes(text.encode('utf-8', 'surrogatepass'))
    fitted = stop_at(monkeypatch, None, quick)
    assert calibrate.main(['--checkpoint', str(copied), '--steps', '1', *FAST]) == 0
    assert fitted == [1] and not unfinished(copied).exists()


def pooled(pictures):
    """Features that cost nothing: means of 4x4 pixels."""
    return torch.nn.functional.avg_pool2d(pictures, 4).flatten(1)


@pytest.fixture
def two_scales(monkeypatch):
    monkeypatch.setattr(guiding, 'SCALES', (1.0, 3.0))
    monkeypatch.setattr(guiding, 'INTERVALS', ((0.6, 2.4),))
    monkeypatch.setattr(guiding, 'FINALISTS', 2)


AUTO = {
    'steps': [2],
    'guidance': 'auto',
    'noises': 2,
    'bases': ['rab'],
    'samples': 40,
    'device': 'cpu',
    'extractor': pooled,
}


def test_chosen_guidance_is_stored_and_used(copied, tmp_path, two_scales, caplog):
    caplog.set_level('INFO', 'k_diffusion')
    first = calibrate_task.calibrate(copied, out=tmp_path / 'a.json', **AUTO)
    again = calibrate_task.calibrate(copied, **{**AUTO, 'batch_size': 256})
    assert first.file.read_bytes() == again.file.read_bytes()
    calibration = calibrations.read(again.file)[0]
    assert (
        calibration.quality['fid'] > 0
        and calibration.quality['fid_error'] > 0
        and calibration.guidance in (1.0, 3.0)
    )
    samples = draw(copied, tmp_path / 'x', steps=2)
    assert f'2 steps and guidance {calibration.guidance:g}, which was chosen for it' in caplog.text
    same = draw(
        copied,
        tmp_path / 'y',
        steps=2,
        sampler='calibrated',
        guidance=calibration.guidance,
        guidance_interval=calibration.guidance_interval,
    )
    assert torch.equal(samples, same)
    other = replace(calibration, guidance=7.0, quality={'fid': 1.0, 'fid_error': 0.1})
    calibrations.add(again.file, [other])
    assert [(entry.steps, entry.guidance) for entry in calibrations.read(again.file)] == [(2, 7.0)]


@pytest.mark.parametrize(
    ('best', 'metric'), [((2.0, None), 'fid'), ((3.0, (0.25, 0.75)), 'kid'), ((1.0, None), 'fid')]
)
def test_the_best_guidance_is_found(best, metric):
    """By a measure that is known, with noise that the first comparison cannot see through."""
    calls = []

    def measure(sampling, n, key):
        here = (sampling.guidance, sampling.guidance_interval)
        calls.append((n, key))
        return (0.0 if here == best else 1.0 + sampling.guidance / 10) + 0.2 * (n < 100) * (
            sampling.guidance == best[0]
        ), 0.01

    judge = SimpleNamespace(
        denoiser=SimpleNamespace(sigma_data=0.5), n=400, measure=measure, metric=metric
    )
    shares = []
    assert (
        guiding.choose_guidance(judge, 5, (0.25, 0.75), lambda share, words: shares.append(share))
        == best
    )
    assert (
        calls.count((400, 'all')) == guiding.FINALISTS
        and calls.count((100, 'few')) == len(calls) - guiding.FINALISTS
    )
    assert shares == sorted(shares) and shares[-1] < 1


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--guidance', 'much'], 'a number or auto'),
        (['--guidance', 'auto', '--guidance-interval', '1,2'], 'must be left out'),
        (['--metric', 'psnr'], 'psnr'),
        (['--samples', '1'], '--samples must be at least 2'),
    ],
)
def test_wrong_usage_of_auto(calibrated, capsys, arguments, words):
    try:
        assert calibrate.main(['--checkpoint', str(calibrated), *arguments]) != 0
    except SystemExit as stop:
        assert stop.code == 2
    assert words in capsys.readouterr().err
