import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import k_diffusion as K
from k_diffusion.cli import config, convert, entry, grid, sample, train
from k_diffusion.core.random import derive_seed
from k_diffusion.generation import BETWEEN, choose_sampling
from k_diffusion.tasks import output
from k_diffusion.tasks.conditioning import class_labels
from k_diffusion.tasks.convert import convert as convert_task
from k_diffusion.tasks.drawing import Draw
from k_diffusion.tasks.run.demo_grid import DemoHook
from k_diffusion.tasks.sample import SampleSettings, read_classes
from k_diffusion.tasks.sample import sample as sample_task


def pixels(path):
    return torch.frombuffer(bytearray(Image.open(path).tobytes()), dtype=torch.uint8)


def test_samples_do_not_depend_on_the_batch_size(trained, tmp_path):
    a, b = (
        sample_task(
            trained, 5, tmp_path / str(size), batch_size=size, steps=4, seed=3, device='cpu'
        )
        for size in (5, 2)
    )
    assert torch.allclose(a.images, b.images, atol=1e-5)
    assert all(
        (pixels(x).int() - pixels(y).int()).abs().max() <= 1 for x, y in zip(a.pictures, b.pictures)
    )
    assert (
        a.labels == [0, 1, 2, 3, 4]
        and (tmp_path / '5' / 'labels.txt').read_text() == '0\n1\n2\n3\n4\n'
    )
    assert sorted(p.name for p in (tmp_path / '5').iterdir()) == [
        'grid.png',
        'images',
        'labels.txt',
    ]
    assert Image.open(a.grid).size == (48, 32) and a.images.std() > 0.1


def test_everything_samples_as_the_library_does(trained, tmp_path):
    """The command, measuring and demo grids use the levels, sampler and options of K.sample."""
    denoiser, config = K.load_model(trained)
    label = {'class_cond': torch.arange(3)}
    expected = K.sample(denoiser, [3, 1, 16, 16], 20, seeds=0, cond=label)
    assert not torch.allclose(
        expected,
        K.sample(denoiser, [3, 1, 16, 16], 20, 'dpmpp_2m', 'karras', seeds=0, cond=label),
        atol=1e-2,
    )
    torch.testing.assert_close(
        sample_task(trained, 3, tmp_path / 'a', device='cpu').images, expected, atol=1e-5, rtol=1e-5
    )
    draw = Draw(
        denoiser,
        denoiser.experiment,
        choose_sampling(config['sampling']),
        0,
        None,
        64,
        torch.device('cpu'),
    )
    assert (draw([0, 1, 2]) - expected.clamp(-1, 1)).abs().max() <= 0.51 / 127.5
    hook = DemoHook(1, tmp_path, 'm', denoiser, denoiser.experiment, 3, 3, print, steps=20)
    accelerator = SimpleNamespace(
        num_processes=1, process_index=0, device='cpu', autocast=torch.no_grad
    )
    grid_of_run = hook.draw(
        SimpleNamespace(accelerator=accelerator, seed=5, stop_asked=lambda: False)
    )
    seeds = [derive_seed(5, 'demo', i) for i in range(3)]
    torch.testing.assert_close(
        grid_of_run,
        K.sample(denoiser, [3, 1, 16, 16], 20, seeds=seeds, cond=label),
        atol=1e-5,
        rtol=1e-5,
    )


def test_a_call_is_silent_and_names_all_that_is_wrong(trained, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr('k_diffusion.tasks.progress.EVERY', 0.01)
    images = sample_task(SampleSettings(trained, 1, tmp_path / 'a', steps=2, device='cpu')).images
    assert capfd.readouterr() == ('', '') and images.std() > 0.03
    with pytest.raises(ValueError) as error:
        sample_task(trained, n=0, sampler='heunn', schedule='karas', batch_size=0)
    assert [problem.split(' must be ')[0] for problem in error.value.problems] == [
        'n',
        'sampler',
        'schedule',
    ]
    assert 'batch_size must be at least 1; got 0' in str(error.value) and '--' not in str(
        error.value
    )
    assert sample.main(['--checkpoint', str(trained), '-n', '0', '--schedule', 'karas']) == 1
    assert capfd.readouterr().err.startswith(
        'k-diffusion sample: -n must be at least 1; got 0. --schedule must be one of'
    )


def test_out_is_taken_in_place_of_prefix(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        sample.main(
            ['--checkpoint', str(trained), '-n', '1', '--steps', '2', '--out', 'o'], prefix='out'
        )
        == 0
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ['o']


def test_seed_class_and_guidance_matter(trained, tmp_path):
    def draw(name, **options):
        return sample_task(trained, 2, tmp_path / name, steps=3, device='cpu', **options).images

    base = draw('a', classes=[1])
    assert torch.equal(base, draw('b', classes=[1]))
    changes = (
        {'seed': 1},
        {'classes': [2]},
        {'guidance': 3.0},
        {'sampler': 'heun'},
        {'schedule': 'exponential'},
        {'ema': False},
    )
    for i, changed in enumerate(changes):
        assert not torch.allclose(base, draw(f'c{i}', **{'classes': [1], **changed})), changed


def test_classes_by_name(tiny, tmp_path, capsys):
    """A folder for each class gives the names; the checkpoint and an inference file of it carry
    them.
    """
    for name, shade in ('cat', 40), ('dog', 200), ('zebra', 120):
        for i in range(4):
            path = tmp_path / 'pictures' / name / f'{i}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new('L', (16, 16), shade + i).save(path)
    config_path = tiny(
        ('dataset', 'type', 'imagefolder-class'),
        ('dataset', 'location', str(tmp_path / 'pictures')),
        ('dataset', 'num_classes', 3),
    )
    assert (
        train.main(
            [
                '--config',
                config_path,
                '--run-dir',
                str(tmp_path / 'run'),
                '--name',
                'tiny',
                '--end-step',
                '2',
                '--device',
                'cpu',
                '--demo-every',
                '0',
                '--evaluate-n',
                '0',
                '--num-workers',
                '0',
            ]
        )
        == 0
    )
    file = convert_task(tmp_path / 'run' / 'tiny_00000002.pth', tmp_path / 'm.safetensors')
    for checkpoint, out in (tmp_path / 'run', 'a'), (file, 'b'):
        arguments = ['--checkpoint', str(checkpoint), '-n', '3', '--steps', '2', '--device', 'cpu']
        assert sample.main([*arguments, '--out', str(tmp_path / out), '--classes', 'zebra,0']) == 0
        assert (tmp_path / out / 'labels.txt').read_text() == '2\n0\n2\n'
    capsys.readouterr()
    assert sample.main([*arguments, '--out', str(tmp_path / 'c'), '--classes', 'zebar']) == 1
    message = (
        '--classes must name classes of the model, which are 0 to 2, called cat, dog, '
        "zebra; got zebar: did you mean 'zebra'?"
    )
    assert message in capsys.readouterr().err


@pytest.mark.parametrize('schedule', BETWEEN)
def test_every_schedule_between_two_levels_is_offered(trained, tmp_path, schedule, capsys):
    images = sample_task(
        trained, 1, tmp_path / 'a', steps=4, schedule=schedule, device='cpu'
    ).images
    assert images.isfinite().all() and images.std() > 0.03
    with pytest.raises(SystemExit):
        sample.main(['--help'])
    assert schedule in capsys.readouterr().out


def test_the_original_door(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = convert_task(trained / 'tiny_00000003.pth', 'm.safetensors')
    assert (
        sample.main(
            ['--checkpoint', str(file), '-n', '2', '--batch-size', '1'],
            'sample.py',
            sampler='lms',
            steps=5,
            prefix='out',
        )
        == 0
    )
    assert sorted(p.name for p in tmp_path.glob('out*')) == [
        'out_00000.png',
        'out_00001.png',
        'out_grid.png',
        'out_labels.txt',
    ]


def test_each_default_folder_is_new(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert (
            sample.main(
                [
                    '--checkpoint',
                    str(trained),
                    '-n',
                    '1',
                    '--steps',
                    '2',
                    '--device',
                    'cpu',
                    '--json',
                ]
            )
            == 0
        )
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line['grid'] for line in lines] == ['samples/grid.png', 'samples-2/grid.png']


def test_convert_and_config_write_what_the_original_writes(trained, tmp_path, capsys):
    out = tmp_path / 'm.safetensors'
    assert convert.main([str(trained / 'tiny_00000003.pth'), '-o', str(out)]) == 0
    umask = os.umask(0)
    os.umask(umask)
    assert out.stat().st_mode & 0o777 == 0o666 & ~umask
    assert (
        convert.main([str(trained), '-o', str(tmp_path / 'm.pt')]) == 1
        and 'must end in .safetensors' in capsys.readouterr().err
    )
    with safe_open(out, 'pt') as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}
        carried = json.loads(file.metadata()['config'])
    assert config.main([str(out), '-o', str(tmp_path / 'c.json')]) == 0
    assert (
        json.loads((tmp_path / 'c.json').read_text())
        == carried
        == json.loads((trained / 'tiny_config.json').read_text())
    )
    half, filled = K.load_model(out)
    full, _ = K.load_model(trained / 'tiny_00000003.pth')
    x, sigma = torch.randn(2, 1, 16, 16), torch.tensor([0.5, 2.0])
    expected = full(x, sigma, class_cond=torch.tensor([1, 2]))
    assert (
        torch.allclose(half(x, sigma, class_cond=torch.tensor([1, 2])), expected, atol=0.02)
        and expected.std() > 0.1
    )
    assert (
        filled['model']['type'] == 'image_v1'
        and not any(p.requires_grad for p in full.parameters())
        and not full.training
    )


def test_grid(trained, tmp_path, capsys):
    names = []
    for i, colour in enumerate(('red', 'lime', 'blue')):
        names.append(str(tmp_path / f'{i}.png'))
        Image.new('RGB', (4, 3), colour).save(names[-1])
    assert grid.main([*names, '-o', str(tmp_path / 'g.png')]) == 0
    picture = Image.open(tmp_path / 'g.png')
    assert (
        picture.size == (8, 6)
        and picture.getpixel((5, 1)) == (0, 255, 0)
        and picture.getpixel((1, 4)) == (0, 0, 255)
    )
    Image.new('L', (4, 3)).save(tmp_path / 'odd.png')
    assert grid.main([*names, str(tmp_path / 'odd.png'), '-o', str(tmp_path / 'h.png')]) == 1
    assert 'one mode and size' in capsys.readouterr().err and not (tmp_path / 'h.png').exists()


@pytest.mark.parametrize(
    'arguments, complaint',
    [
        (['--checkpoint', 'nowhere.pth'], 'no checkpoint at nowhere.pth'),
        (
            ['--checkpoint', '{run}', '--classes', '11'],
            '--classes must name classes of the model, which are 0 to 9; got 11',
        ),
        (['--checkpoint', '{run}', '--sampler', 'heunn'], "did you mean 'heun'"),
        (['--checkpoint', '{run}', '--schedule', 'karas'], "did you mean 'karras'"),
        (['--checkpoint', '{run}', '--steps', '0'], 'at least 1'),
        (['--checkpoint', '{run}', '--schedule', 'vp'], '--schedule must be one of'),
        (
            ['--checkpoint', '{run}', '--device', 'quantum'],
            '--device must be one that this machine',
        ),
        (['--checkpoint', '{run}', '--batch-size', '0'], '--batch-size must be at least 1; got 0'),
        (['--checkpoint', '{run}', '--sigma-min', '-1'], 'sigma_min'),
    ],
)
def test_a_mistake_is_one_sentence(trained, tmp_path, monkeypatch, capsys, arguments, complaint):
    monkeypatch.chdir(tmp_path)
    assert sample.main([text.format(run=trained) for text in arguments] + ['-n', '1']) == 1
    err = capsys.readouterr().err
    assert complaint in err and 'Traceback' not in err and list(tmp_path.iterdir()) == []


def test_samples_are_never_mixed_with_older_ones(trained, tmp_path, capsys):
    arguments = [
        '--checkpoint',
        str(trained),
        '-n',
        '1',
        '--steps',
        '2',
        '--out',
        str(tmp_path / 'o'),
    ]
    assert sample.main(arguments) == 0
    assert sample.main(arguments) == 1 and 'holds samples already' in capsys.readouterr().err
    assert sample.main([*arguments, '-n', '2', '--overwrite']) == 0
    assert sorted(path.name for path in (tmp_path / 'o').rglob('*.*')) == [
        '00000.png',
        '00001.png',
        'grid.png',
        'labels.txt',
    ]
    output.Target(tmp_path / 'o', None).write(torch.zeros(1, 1, 4, 4), None)
    assert sorted(path.name for path in (tmp_path / 'o').rglob('*.*')) == ['00000.png', 'grid.png']


def test_weights_without_a_config_take_it_from_elsewhere(trained, tmp_path):
    tensors = K.core.weights.load_checkpoint(trained / 'tiny_00000003.pth')['model_ema']
    K.core.weights.save_safetensors(tmp_path / 'bare.safetensors', tensors)
    with pytest.raises(ValueError, match='has no config'):
        K.load_model(tmp_path / 'bare.safetensors')
    denoiser, _ = K.load_model(tmp_path / 'bare.safetensors', config=trained / 'tiny_config.json')
    whole, _ = K.load_model(trained)
    x, sigma = torch.randn(1, 1, 16, 16), torch.ones(1)
    assert torch.equal(denoiser(x, sigma), whole(x, sigma)) and whole(x, sigma).std() > 0.1


def test_unknown_keys_of_a_checkpoint_are_told_once(trained, tmp_path):
    checkpoint = K.core.weights.load_checkpoint(trained / 'tiny_00000003.pth')
    checkpoint['config']['model']['of_a_fork'] = 1
    K.core.weights.save_checkpoint(tmp_path / 'fork.pth', checkpoint)
    with pytest.warns(UserWarning, match='of_a_fork') as caught:
        K.load_model(tmp_path / 'fork.pth')
    assert len(caught) == 1


def test_the_program(capsys):
    assert entry.main(['--version']) == 0 and K.__version__ in capsys.readouterr().out
    assert entry.main(['--help']) == 0 and 'k-diffusion COMMAND' in capsys.readouterr().out
    assert entry.main(['smaple']) == 2 and "did you mean 'sample'" in capsys.readouterr().err
    for command in entry.COMMANDS:
        with pytest.raises(SystemExit) as exit_info:
            entry.main([command, '--help'])
        assert exit_info.value.code == 0 and 'example' in capsys.readouterr().out


GUIDED = {'guidance': 4.5, 'guidance_interval': [0.3, 1.2]}


def test_plain_guidance_is_none_for_cfg_pp():
    assert choose_sampling(GUIDED).guidance == 4.5
    assert choose_sampling(GUIDED, sampler='euler_cfg_pp').guidance == 1
    assert choose_sampling(GUIDED, sampler='euler_cfg_pp', guidance=0.6).guidance == 0.6
    with pytest.raises(ValueError, match='guidance must be from 0 to 1 with euler_cfg_pp'):
        choose_sampling(GUIDED, sampler='euler_cfg_pp', guidance=4.5)


@pytest.mark.parametrize(
    ('labels', 'numbers'),
    [
        (['1'], [0]),
        (['10'], [1]),
        (['2'], [2]),
        (['3'], [3]),  # names of folders as text sorts them, and 3 is none of them
        ([1], [1]),
        ([3], [3]),
        ([np.int64(2)], [2]),
        ([torch.tensor(2)], [2]),
        (['10', 1, '3'], [1, 1, 3]),
    ],
)
def test_a_text_that_is_a_name_is_no_number(labels, numbers):
    names = ['1', '10', '2', 'ten']
    assert (
        class_labels(labels, SimpleNamespace(num_classes=4, class_names=names), len(numbers))
        == numbers
    )
    assert class_labels(
        read_classes('2,ten'), SimpleNamespace(num_classes=4, class_names=names), 2
    ) == [2, 3]


@pytest.mark.parametrize('label', ['4', '-1', '1.5', '', 4, -1, 1.5, None, '²'])
def test_what_is_no_class_is_refused(label):
    with pytest.raises(
        ValueError,
        match='classes must name classes of the model, which are 0 to 3, called 1, 10, 2, ten; got',
    ):
        class_labels(
            [label], SimpleNamespace(num_classes=4, class_names=['1', '10', '2', 'ten']), 1
        )


def test_names_that_look_alike_are_one():
    """A Mac writes é into names of files as e and an accent."""
    assert class_labels(
        ['caf\xe9'], SimpleNamespace(num_classes=2, class_names=['bar', 'cafe\u0301']), 1
    ) == [1]
    assert class_labels(
        ['cafe\u0301'], SimpleNamespace(num_classes=2, class_names=['bar', 'caf\xe9']), 1
    ) == [1]
