"""Networks and samplers of one's own, from Python and as FILE.py:NAME."""

import json

import pytest
import torch
from clip_folder import make_clip

import k_diffusion as K
from k_diffusion.cli.entry import main
from k_diffusion.core.python_files import load_reference
from k_diffusion.tasks.sample import sample as draw

NETWORK = """
import torch
class MyNet(torch.nn.Module):
    def __init__(self, width=1):
        super().__init__()
        self.mix = torch.nn.Conv2d(1, width, 3, padding=1)
    def forward(self, x, sigma):
        return self.mix(x)
"""
SAMPLERS = """
import k_diffusion as K

def sample_halves(model, x, sigmas, extra_args=None, callback=None, disable=None):
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * x.new_ones([len(x)]), **(extra_args or {}))
        x = denoised + (x - denoised) * sigmas[i + 1] / sigmas[i]
        if callback is not None:
            state = {'x': x, 'i': i, 'sigma': sigmas[i], 'sigma_hat': sigmas[i]}
            callback({**state, 'denoised': denoised})
    return x

@K.sampling.sampler(order=1)
def sample_own_steps(steps, x):
    for step in steps:
        x = x + step.slope(x) * (step.sigma_next - step.sigma)
        x = yield x
    return x
"""
WORDS = ['a', 'b']
PICTURES = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
QUIET = {'device': 'cpu', 'show': False}


def features(pictures):
    return pictures.flatten(1)[:, :3]


@pytest.fixture(scope='module')
def own(tmp_path_factory):
    """The folder of a run of a network in a file on pictures given from Python."""
    folder = tmp_path_factory.mktemp('own')
    (folder / 'net.py').write_text(NETWORK)
    (folder / 'samplers.py').write_text(SAMPLERS)
    K.train(
        network=f'{folder}/net.py:MyNet',
        dataset=PICTURES,
        name='own',
        run_dir=folder,
        end_step=1,
        demo_every=0,
        evaluate_n=0,
        batch_size=4,
        allow_code=True,
        **QUIET,
    )
    return folder


def net(folder):
    return f'{folder}/net.py:MyNet'


@pytest.mark.parametrize('form', ['instance', 'file'])
def test_every_task_takes_the_network(own, tmp_path, form):
    how = (
        {'network': net(own), 'allow_code': True}
        if form == 'file'
        else {'network': load_reference(net(own), 'network', True)()}
    )
    arguments = {'checkpoint': own, **how, **QUIET}
    samples = draw(n=2, steps=3, out=tmp_path / 'a', **arguments)
    denoiser, _ = K.load_model(own, **how)
    torch.testing.assert_close(samples.images, K.sample(denoiser, [2, 1, 8, 8], 3, seeds=0))
    evaluation = K.evaluate(
        n=6,
        steps=2,
        extractor=features,
        metrics=['fid'],
        out=tmp_path / 'b',
        dataset=PICTURES,
        **arguments,
    )
    assert evaluation.values['fid'] > 0 and evaluation.facts['reference_n'] == 12
    assert K.likelihood(n=2, steps=1, out=tmp_path / 'c', dataset=PICTURES, **arguments).mean != 0
    assert (
        K.calibrate(steps=[2], noises=2, bases=['eab'], out=tmp_path / 'd.json', **arguments)
        .calibrations[0]
        .steps
        == 2
    )
    folder = make_clip(tmp_path / 'clip', WORDS, size=8, channels=1, width=16, layers=1)
    assert (
        K.clip(['a'], n=1, steps=2, clip_model=folder, out=tmp_path / 'e', **arguments)
        .images.isfinite()
        .all()
    )


def test_a_run_says_how_to_give_its_network(own, tmp_path, capsys):
    with pytest.raises(
        ValueError,
        match=r"network must be given, .* pass network='.*net.py:MyNet' and allow_code=True",
    ):
        K.evaluate(checkpoint=own, dataset=PICTURES, **QUIET)
    flags = [
        'sample',
        '--checkpoint',
        str(own),
        '-n',
        '1',
        '--steps',
        '2',
        '--device',
        'cpu',
        '--out',
        str(tmp_path / 'a'),
    ]
    assert main(flags) == 1
    assert f'--network must be given, since {net(own)} is not' in (said := capsys.readouterr().err)
    assert f"pass --network '{net(own)}' and --allow-code" in said
    assert main([*flags, '--network', net(own)]) == 1
    assert (
        'runs only with --allow-code; read it, and pass that if you trust it'
        in capsys.readouterr().err
    )
    assert main([*flags, '--network', net(own), '--allow-code']) == 0
    with pytest.raises(TypeError, match='network must be an instance of torch.nn.Module'):
        K.evaluate(checkpoint=own, network=5, dataset=PICTURES, **QUIET)


@pytest.mark.parametrize('name', ['sample_halves', 'sample_own_steps'])
def test_a_sampler_in_a_file_is_that_sampler(own, tmp_path, name):
    """Both are Euler's method; one is written as the original writes samplers, one for this
    package.
    """
    arguments = {'checkpoint': own, 'network': net(own), 'allow_code': True, 'steps': 4, **QUIET}
    reference = f'{own}/samplers.py:{name}'
    euler = draw(n=2, sampler='euler', out=tmp_path / 'a', **arguments).images
    for place in 'bc':  # the file is run twice in one process
        images = draw(n=2, sampler=reference, out=tmp_path / place, **arguments).images
        torch.testing.assert_close(images, euler, atol=1e-4, rtol=1e-4)
    function = load_reference(reference, 'sampler', True)
    images = draw(n=2, sampler=function, out=tmp_path / 'd', **arguments).images
    torch.testing.assert_close(images, euler, atol=1e-4, rtol=1e-4)


def test_an_evaluation_is_of_the_code_in_the_file(own, tmp_path):
    (tmp_path / 'samplers.py').write_text(SAMPLERS)
    arguments = {
        'checkpoint': own,
        'network': net(own),
        'allow_code': True,
        'sampler': f'{tmp_path}/samplers.py:sample_halves',
        'n': 4,
        'steps': 2,
        'extractor': features,
        'metrics': ['fid'],
        'dataset': PICTURES,
        'out': tmp_path / 'out',
        **QUIET,
    }
    before = K.evaluate(**arguments)
    assert (
        before.facts['sampler'] == 'sample_halves'
        and K.evaluate(**arguments).values == before.values
    )
    (tmp_path / 'samplers.py').write_text(SAMPLERS.replace('return x\n\n@K', 'return x / 2\n\n@K'))
    assert K.evaluate(**arguments).values != before.values
    assert json.loads((tmp_path / 'out' / 'metrics.json').read_text())['sampler'] == 'sample_halves'


def test_mistakes_end_in_one_sentence(own, capsys):
    flags = [
        'sample',
        '--checkpoint',
        str(own),
        '--network',
        net(own),
        '--device',
        'cpu',
        '--sampler',
    ]
    assert main([*flags, f'{own}/samplers.py:sample_halves']) == 1
    assert (
        'runs only with --allow-code; read it, and pass that if you trust it'
        in capsys.readouterr().err
    )
    assert main([*flags, f'{own}/samplers.py:sample_third', '--allow-code']) == 1
    assert '--sampler must name a function or class of the file' in capsys.readouterr().err
    with pytest.raises(
        ValueError, match=r'dataset must hold pictures \[1, 8, 8\].*got \[1, 4, 4\]'
    ):
        K.evaluate(
            checkpoint=own,
            network=net(own),
            allow_code=True,
            dataset=PICTURES[..., :4, :4],
            **QUIET,
        )
