"""Distillation as a run: it goes on exactly, and its checkpoints say what they are."""

import importlib
import json

import pytest
import torch

import k_diffusion as K
from k_diffusion.cli.distill import main
from k_diffusion.core.weights import load_checkpoint
from k_diffusion.tasks.run.distilling import Distiller
from k_diffusion.tasks.sample import sample

METHODS = ('cmt', 'ect', 'meanflow')
QUIET = {'demo_every': 0, 'report': False, 'device': 'cpu', 'show': False, 'num_workers': 0}


def distill(checkpoint, folder, **settings):
    few = {'paths': 12, 'path_steps': 3, 'path_share': 0.5, 'steps': 6}
    return K.distill(checkpoint, name='fast', run_dir=folder, **{**few, **QUIET, **settings})


def same(a, b):
    """Return whether two checkpoints hold the same numbers, bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture(scope='module')
def fast(trained, tmp_path_factory):
    """The run of a distilled model."""
    return distill(trained, tmp_path_factory.mktemp('fast'), guidance=2.0, calls=4)


@pytest.mark.parametrize('method', METHODS)
def test_stopping_and_going_on_changes_nothing(trained, tmp_path, method):
    settings = {'method': method, 'guidance': 2.0}
    distill(trained, tmp_path / 'straight', **settings)
    for step in (2, 4):  # before, and within, the second part of cmt

        def stop(trainer, step=step):
            if trainer.step == step:
                raise K.Stop

        assert distill(trained, tmp_path / 'parted', hooks=[stop], **settings).status == 'stopped'
    assert distill(trained, tmp_path / 'parted', **settings).status == 'done'
    straight, parted = (
        load_checkpoint(tmp_path / name / 'fast_00000006.pth') for name in ('straight', 'parted')
    )
    for key in ('model', 'model_ema', 'opt', 'sched', 'ema_sched', 'step', 'items', 'ema_stats'):
        assert same(straight[key], parted[key]), key


@pytest.mark.parametrize('batch_size', [4, 16])
def test_the_schedule_goes_by_steps_whatever_the_batch(trained, tmp_path, monkeypatch, batch_size):
    """Three steps of eight items, and then three of another number."""
    shares, tune = [], Distiller._tune

    def record(self, example, progress):
        shares.append(progress)
        return tune(self, example, progress)

    def stop(trainer):
        if trainer.step == 3:
            raise K.Stop

    monkeypatch.setattr(Distiller, '_tune', record)
    distill(trained, tmp_path, method='ect', batch_size=8, hooks=[stop])
    distill(trained, tmp_path, method='ect', batch_size=batch_size)
    assert shares == [step / 6 for step in range(6)]


def test_it_starts_from_the_weights_of_the_teacher(trained, tmp_path):
    teacher, _ = K.load_model(trained)
    run = distill(trained, tmp_path, method='ect', steps=1, lr=1e-30)
    student = run.denoiser
    x, sigma = torch.randn(4, 1, 16, 16), torch.tensor([0.1, 1.0, 5.0, 40.0])
    cond = {'class_cond': torch.arange(4)}
    for second in (0.0, 0.05):
        torch.testing.assert_close(
            student.mean_estimate(x, sigma, second, **cond), teacher(x, sigma, **cond)
        )


def test_the_checkpoint_says_what_it_is(fast, trained):
    config = json.loads((fast.folder / 'fast_config.json').read_text())
    assert config['model']['flow_map'] and config['sampling']['steps'] == 4
    section = config['distillation']
    assert section['method'] == 'cmt' and section['guidance'] == 2.0
    assert section['teacher'].endswith('tiny_00000003.pth') and len(section['teacher_digest']) == 32
    assert isinstance(fast.denoiser, K.denoisers.FlowMap)


def test_samples_take_the_calls_that_are_asked_for(fast, tmp_path, capsys):
    calls = []
    denoiser = fast.denoiser
    denoiser.inner_model.register_forward_hook(lambda *_: calls.append(1))
    for steps, expected in (None, 20), (1, 1), (2, 2), (4, 4):
        calls.clear()
        cond = {'class_cond': torch.arange(3)}
        images = K.sample(denoiser, [3, 1, 16, 16], steps, seeds=0, cond=cond)
        assert len(calls) == expected and images.isfinite().all()
    samples = sample(fast.folder, n=3, out=tmp_path / 'four', device='cpu', show=False)
    again = sample(fast.folder, n=3, out=tmp_path / 'again', steps=4, device='cpu', show=False)
    assert torch.equal(samples.images, again.images)  # the config's 4 calls


def test_it_is_evaluated_with_its_own_calls(fast, tmp_path):
    result = K.evaluate(
        fast.folder,
        n=16,
        reference_n=64,
        out=tmp_path,
        cache=tmp_path,
        device='cpu',
        show=False,
        extractor=lambda x: x.flatten(1)[:, ::16],
        metrics=['kid'],
    )
    assert result.facts['steps'] == 4 and result.facts['sampler'] == 'flow_map'
    assert result.facts['guidance'] == 1.0


def test_guidance_is_refused_where_it_is_distilled_in(fast, tmp_path, trained):
    with pytest.raises(ValueError, match='guidance must be left out for a flow map'):
        sample(fast.folder, n=2, guidance=3.0, out=tmp_path / 'x', show=False)
    with pytest.raises(ValueError, match='flow map already'):
        distill(fast.folder, tmp_path / 'twice')


def test_samplers_that_need_a_denoiser_are_refused(fast, tmp_path):
    cond = {'class_cond': torch.arange(2)}
    for sampler in ('heun', K.sampling.sample_dpmpp_2m):
        for schedule in (None, 'karras', [40.0, 1.0, 0.0]):
            with pytest.raises(ValueError, match='sampler must be one of flow_map, lcm, tcd'):
                K.sample(fast.denoiser, [2, 1, 16, 16], None, sampler, schedule, cond=cond)
    with pytest.raises(ValueError, match='sampler must be one of flow_map, lcm, tcd'):
        sample(fast.folder, n=2, sampler='euler', out=tmp_path / 'x', show=False)
    for sampler in ('lcm', 'tcd'):
        assert K.sample(fast.denoiser, [2, 1, 16, 16], 2, sampler, cond=cond).isfinite().all()
    K.sample(fast.denoiser.denoiser, [2, 1, 16, 16], 4, 'heun', cond=cond)


def test_the_guidance_scale_as_an_input(trained, tmp_path):
    run = distill(trained, tmp_path, method='meanflow', guidance_max=4.0)
    denoiser = run.denoiser
    with torch.no_grad():
        denoiser.inner_model.inner_model.map_inputs.scale[1].weight.fill_(0.5)
        for module in denoiser.modules():  # (zero at the start of training)
            if isinstance(module, torch.nn.Linear):
                module.weight.add_(0.01)
    cond = {'class_cond': torch.arange(2)}
    plain, strong = (
        K.sample(denoiser, [2, 1, 16, 16], 2, seeds=0, cond=cond, guidance=scale)
        for scale in (1.0, 3.0)
    )
    assert not torch.equal(plain, strong)
    for scale in (0.5, 4.5, float('nan')):
        with pytest.raises(ValueError, match='guidance must be from 1 to 4 for this flow map'):
            K.sample(denoiser, [2, 1, 16, 16], 2, seeds=0, cond=cond, guidance=scale)
    for steps in (1, 2):
        assert (
            len(
                sample(
                    run.folder,
                    n=2,
                    guidance=2.0,
                    steps=steps,
                    out=tmp_path / f's{steps}',
                    device='cpu',
                    show=False,
                ).images
            )
            == 2
        )


def test_a_demo_grid_is_drawn_and_the_paths_are_kept(trained, tmp_path):
    distill(trained, tmp_path, demo_every=6, sample_n=4)
    assert (tmp_path / 'fast_demo_00000006.png').is_file()
    file = tmp_path / 'cache' / 'teacher_paths.safetensors'
    tensors = K.core.weights.load_safetensors(file)
    levels = tensors['levels'].tolist()
    assert tensors['x'].shape == (12, len(levels), 1, 16, 16)
    assert levels[0] == 40 and levels == sorted(levels, reverse=True) and levels[-1] == 0
    noise = tensors['x'][:, 0] / tensors['levels'][0]
    assert noise.std().item() == pytest.approx(1, abs=0.05)


def test_another_teacher_is_refused(trained, tmp_path):
    def stop(trainer):
        raise K.Stop

    copy = tmp_path / 'teacher.pth'
    state = load_checkpoint(trained / 'tiny_00000003.pth')
    torch.save(state, copy)
    distill(copy, tmp_path / 'run', method='ect', hooks=[stop])
    state['model_ema'] = {
        key: value + 1 if value.is_floating_point() else value
        for key, value in state['model_ema'].items()
    }
    torch.save(state, copy)
    with pytest.raises(ValueError, match='the weights that the run began with'):
        distill(copy, tmp_path / 'run', method='ect')


def test_mistakes_are_one_sentence(trained, tmp_path, capsys):
    arguments = ['--checkpoint', str(trained), '--run-dir', str(tmp_path / 'run')]
    assert main([*arguments, '--method', 'cmt', '--guidance-max', '4']) == 1
    assert 'guidance_max must be null for the method cmt' in capsys.readouterr().err
    with pytest.raises(ValueError, match='steps must be at least 1'):
        K.distill(trained, steps=0)
    assert main(['--checkpoint', str(tmp_path / 'no')]) == 1


@pytest.mark.parametrize('scale', [{'guidance': 2.0}, {'guidance_max': 3.0, 'method': 'ect'}])
def test_guidance_needs_a_condition(trained, tmp_path, scale):
    config = K.load_model(trained)[0].experiment.as_dict()
    config = {**config, 'dataset': {**config['dataset'], 'num_classes': 0}, 'conditions': []}
    settings = K.tasks.distill.DistillSettings(checkpoint=trained, **scale)
    with pytest.raises(ValueError, match=f'{next(iter(scale))} must be left out'):
        K.tasks.distill.distilled_config(config, tmp_path / 'm.pth', settings)


@pytest.mark.parametrize(('stored', 'expected'), [(7, 7), (None, 0), ('folder', 0)])
def test_items_held_out_by_number_stay_held_out(trained, monkeypatch, stored, expected):
    """A number keeps items out of the training; another data set would only be measured on."""
    module = importlib.import_module('k_diffusion.tasks.distill')
    read, calls = module.read_weights, []

    def with_held_out(path, **options):
        weights, config = read(path, **options)
        return weights, {**config, 'training': {**config['training'], 'held_out': stored}}

    monkeypatch.setattr(module, 'read_weights', with_held_out)
    monkeypatch.setattr(module, 'train', calls.append)
    module.distill(trained, show=False)
    assert [settings.held_out for settings in calls] == [expected]
