"""k-diffusion clip and sample_clip_guided.py: flags, prompts, pictures, and that prompts are
reached with a model worth guiding.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from clip_folder import make_clip, taught_digits

from k_diffusion.cli.entry import main
from k_diffusion.core.images import save_image
from k_diffusion.core.pretrained import ClipModel
from k_diffusion.tasks.clip import clip, split_weight

ROOT = Path(__file__).parents[2]
WORDS = [
    'a',
    'photo',
    'of',
    'the',
    'digit',
    'zero',
    'one',
    'two',
    'three',
    'four',
    'five',
    'six',
    'seven',
    'eight',
    'nine',
]

pytest.importorskip('transformers', reason='transformers is in the extra "clip"')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return make_clip(tmp_path_factory.mktemp('clip'), WORDS, width=16, layers=1)


def example():
    spec = importlib.util.spec_from_file_location(
        'clip_digits', ROOT / 'examples' / 'clip_digits.py'
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def draw(trained, folder, out, *prompts, **options):
    options = {
        'n': 3,
        'steps': 4,
        'device': 'cpu',
        'show': False,
        'clip_guidance_scale': 20.0,
        **options,
    }
    return clip(
        list(prompts or ['a photo of the digit seven']),
        trained,
        out=out,
        clip_model=folder,
        **options,
    ).images


def test_images_depend_on_seed_and_prompt_alone(trained, folder, tmp_path):
    first = draw(trained, folder, tmp_path / 'a', cutn=2)
    assert first.shape == (3, 1, 16, 16) and (tmp_path / 'a' / 'grid.png').exists()
    torch.testing.assert_close(
        draw(trained, folder, tmp_path / 'b', cutn=2, batch_size=2), first, atol=1e-4, rtol=1e-4
    )
    changes = [
        {'seed': 1},
        {'clip_guidance_scale': 0.0},
        {'cutn': 5},
        {'sampler': 'euler'},
        {'normalise': True},
        {'time_travel_steps': 2},
    ]
    for i, change in enumerate(changes):
        assert not torch.allclose(
            draw(trained, folder, tmp_path / f'{i}', **{'cutn': 2, **change}), first, atol=1e-3
        ), change
    strong = [
        draw(trained, folder, tmp_path / f'{clamp}', cutn=2, clip_guidance_scale=1e5, clamp=clamp)
        for clamp in (True, False)
    ]
    assert not torch.allclose(*strong, atol=1e-3)
    assert not torch.allclose(
        draw(trained, folder, tmp_path / 'c', 'a photo of the digit one', cutn=2), first, atol=1e-3
    )


def test_prompts_with_weights_and_pictures(trained, folder, tmp_path):
    expected = {
        'a: b:-0.5': ('a: b', -0.5),
        'noon 12:x': ('noon 12:x', 1.0),
        'plain': ('plain', 1.0),
    }
    assert {prompt: split_weight(prompt) for prompt in expected} == expected
    save_image(tmp_path / 'p.png', torch.rand(3, 30, 20) * 2 - 1)
    one = draw(trained, folder, tmp_path / 'a', 'digit one')
    same = draw(
        trained,
        folder,
        tmp_path / 'b',
        'digit one:1',
        'digit two:0',
        images=[f'{tmp_path}/p.png:0'],
    )
    torch.testing.assert_close(same, one, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(
        draw(trained, folder, tmp_path / 'c', 'digit one', images=[f'{tmp_path}/p.png:3']),
        one,
        atol=1e-3,
    )


def test_a_picture_to_begin_with_and_a_preview(trained, folder, tmp_path):
    picture = torch.rand(1, 16, 16) * 2 - 1
    save_image(tmp_path / 'p.png', picture)
    out = draw(
        trained,
        folder,
        tmp_path / 'a',
        init=str(tmp_path / 'p.png'),
        sigma_start=0.05,
        preview=tmp_path / 'live.png',
    )
    assert (out - picture).abs().mean() < 0.1 and (tmp_path / 'live.png').exists()
    far = draw(trained, folder, tmp_path / 'b', init=str(tmp_path / 'p.png'))
    assert (far - picture).abs().mean() > 0.2


def test_the_door_of_the_original(trained, folder, tmp_path):
    flags = [
        'the digit one',
        '--checkpoint',
        str(trained),
        '-n',
        '2',
        '--batch-size',
        '2',
        '--steps',
        '2',
        '-cgs',
        '20',
        '--clip-model',
        str(folder),
        '--device',
        'cpu',
    ]
    done = subprocess.run(
        [sys.executable, ROOT / 'sample_clip_guided.py', *flags],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={'PYTHONPATH': str(ROOT), 'PATH': '/usr/bin:/bin', 'OMP_NUM_THREADS': '1'},
    )
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in tmp_path.glob('out_0*.png')) == ['out_00000.png', 'out_00001.png']


@pytest.mark.parametrize(
    'flags, message',
    [
        ([], 'prompts must hold a text'),
        (
            ['x', '--clip-model', 'no/such/folder'],
            'there is no folder no/such/folder, and no model of that name',
        ),
        (['x', '--sigma-start', '3'], '--sigma-start must be left out without init'),
        (['x', '--init', 'none.png'], 'picture none.png does not exist'),
        (['x', '--cutn', '0'], '--cutn must be at least 1; got 0'),
        (
            ['x', '--time-travel', '2', '--sampler', 'dpm_fast'],
            '--sampler must take given steps for time_travel_steps above 1',
        ),
    ],
)
def test_mistakes_end_in_one_sentence(
    trained, folder, tmp_path, monkeypatch, capsys, flags, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    model = [] if '--clip-model' in flags else ['--clip-model', str(folder)]
    status = main(['clip', *flags, '--checkpoint', str(trained), '--out', 'x', *model])
    said = capsys.readouterr().err
    assert status == 1 and message in said and said.count('\n') == 1 and not Path('x').exists()


def test_clip_of_another_size_and_colour(tmp_path):
    model = ClipModel(make_clip(tmp_path / 'clip', WORDS, size=8, channels=3, width=16, layers=1))
    x = torch.rand(2, 1, 16, 16, requires_grad=True)
    assert model.encode_images(x).shape == (2, 16) and model.encode_texts(
        ['the digit', 'a']
    ).shape == (2, 16)
    model.encode_images(x).sum().backward()
    assert x.grad.abs().sum() > 0 and not any(p.requires_grad for p in model.parameters())
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='must be one that save_pretrained wrote'):
        ClipModel(tmp_path / 'empty')


def test_a_dual_encoder_guides_a_model_that_knows_no_classes():
    """Unguided at most 0.2 show the prompt, guided at least 0.85, no further from the data;
    judged by the nearest training picture.
    """
    digits = example()
    images, labels = digits.digits()
    encoder = digits.train_dual_encoder(images[2000:], labels[2000:], 150, 128)
    reference = images[:1000], labels[:1000]
    denoise, classes = digits.Smoothed(reference[0]), digits.prompts(100)[1]
    (unguided, off), (guided, off_guided) = (
        digits.judge(digits.draw(denoise, encoder, 100, scale), *reference, classes)
        for scale in (0.0, 50.0)
    )
    assert unguided <= 0.2 and guided >= 0.85 and off_guided <= 1.2 * off, (
        unguided,
        guided,
        off,
        off_guided,
    )


@pytest.mark.slow
def test_the_command_reaches_its_prompt(tmp_path, monkeypatch, capsys):
    """The demo's own model, its classes left untold, towards each digit by a CLIPModel that
    learned the digits here.
    """
    monkeypatch.chdir(tmp_path)
    digits = example()
    images, labels = digits.digits()
    captions = [
        [f'a photo of the digit {word}', f'the digit {word}', word] for word in digits.WORDS
    ]
    folder = make_clip(tmp_path / 'clip', WORDS, train=taught_digits(captions, images, labels, 700))
    assert main(['demo', '--name', 'demo', '-n', '4']) == 0
    right, off = {}, {}
    for scale in (0, 50):
        probability, distance = 0.0, 0.0
        for d, word in enumerate(digits.WORDS):
            flags = [
                '--checkpoint',
                'runs/demo',
                '--clip-model',
                str(folder),
                '-n',
                '10',
                '--steps',
                '25',
                '-cgs',
                str(scale),
                '--no-clamp',
                '--sampler',
                'euler_ancestral',
                '--seed',
                str(d),
                '--out',
                f'{scale}-{d}',
                '--json',
            ]
            assert main(['clip', f'a photo of the digit {word}', *flags]) == 0
            assert json.loads(capsys.readouterr().out.splitlines()[-1])['n'] == 10
            samples = digits.pictures(tmp_path / f'{scale}-{d}' / 'images')
            share, away = digits.judge(samples, images, labels, torch.full((10,), d))
            probability, distance = probability + share / 10, distance + away / 10
        right[scale], off[scale] = probability, distance
    assert right[0] <= 0.2 and right[50] >= 0.85 and off[50] <= 1.2 * off[0], (right, off)
