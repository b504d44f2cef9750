import math
import threading

import pytest
import torch
from torch import nn

from k_diffusion.core import extras, files, images, modules, random, spectral, tensors, weights
from k_diffusion.core.registry import Registry


def test_append_dims():
    assert tensors.append_dims(torch.ones(3), 4).shape == (3, 1, 1, 1)
    assert tensors.append_dims(torch.tensor(2.0), 2).item() == 2
    with pytest.raises(ValueError, match='at least the number of dimensions of x, 4'):
        tensors.append_dims(torch.ones(1, 1, 1, 1), 3)


def test_per_item_reductions():
    x = torch.arange(24.0).reshape(2, 3, 4)
    assert tensors.mean_per_item(x).tolist() == [5.5, 17.5]
    assert tensors.sum_per_item(x).tolist() == [66.0, 210.0]


def test_train_mode_restores_each_flag_and_decorates():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Linear(1, 1)))
    model[1].eval()
    with modules.eval_mode(model) as same:
        assert same is model and not any(m.training for m in model.modules())
    assert [m.training for m in model.modules()] == [True, True, False, False]
    assert modules.train_mode(model[1])(lambda: model[1].training)() is True
    assert model[1].training is False
    assert modules.n_params(model) == 2


def test_tf32_mode_restores():
    before = torch.backends.cuda.matmul.allow_tf32
    with modules.tf32_mode(matmul=not before):
        assert torch.backends.cuda.matmul.allow_tf32 is not before
    assert torch.backends.cuda.matmul.allow_tf32 is before


def test_checkpointing_is_per_thread_and_keeps_gradients():
    layer, x, calls = nn.Linear(4, 4), torch.randn(2, 4), []

    def body(x):
        calls.append(1)
        return layer(x).tanh()

    modules.checkpoint(body, x).sum().backward()
    plain = layer.weight.grad.clone()
    layer.zero_grad()
    with modules.checkpointing():
        states = []
        thread = threading.Thread(target=lambda: states.append(modules.get_checkpointing()))
        thread.start()
        thread.join()
        assert modules.get_checkpointing() and states == [False]
        modules.checkpoint(body, x).sum().backward()
    assert (
        len(calls) == 3
        and torch.equal(layer.weight.grad, plain)
        and not modules.get_checkpointing()
    )


def test_named_randomness():
    assert random.derive_seed(0, 'noise', 3) == random.derive_seed(0, 'noise', 3)
    assert (
        len({random.derive_seed(s, k, i) for s in (0, 1) for k in ('a', 'b') for i in range(50)})
        == 200
    )
    noise = random.randn_items((3, 5), [7, 8, 9])
    assert torch.equal(noise[1:2], random.randn_items((3, 5), [8]))
    assert abs(random.randn_items((1000,), range(20)).std().item() - 1) < 0.02
    assert torch.rand(3, generator=random.generator(1, 'x')).equal(
        torch.rand(3, generator=random.generator(1, 'x'))
    )


def test_registry_suggests():
    things: Registry[int] = Registry('thing')
    things.register('euler', 'eular_alias')(1)
    assert things['euler'] == 1 and list(things) == ['euler', 'eular_alias']
    with pytest.raises(ValueError, match="unknown thing 'euller', did you mean 'euler'"):
        things['euller']
    with pytest.raises(ValueError, match='registered already'):
        things.register('euler')(2)


def test_a_long_list_of_names_is_cut_to_those_like_it():
    things: Registry[int] = Registry('thing')
    things.register(*(f'other_{i}' for i in range(60)), 'euler', 'euler_a')(1)
    with pytest.raises(
        ValueError,
        match=r"unknown thing 'euller', did you mean 'euler'\? known: .*\beuler, euler_a, .* and "
        r'50 more$',
    ):
        things['euller']


def test_missing_extra_names_itself():
    with pytest.raises(extras.MissingExtra, match=r'k-diffusion\[hf\]'):
        extras.require('surely_not_installed', 'hf', 'this')
    assert extras.require('math', 'hf', 'this') is math


def test_dct_against_scipy():
    fft = pytest.importorskip('scipy.fft', reason='scipy is the oracle here (extra dev)')
    for shape in [(2, 3, 8), (2, 3, 6, 5), (1, 2, 4, 3, 5)]:
        x = torch.randn(shape, dtype=torch.float64)
        expected = fft.dctn(x.numpy(), axes=range(2, x.ndim), norm='ortho')
        torch.testing.assert_close(spectral.dct(x), torch.from_numpy(expected), atol=1e-12, rtol=0)
    with pytest.raises(ValueError, match='got 2 dimensions'):
        spectral.dct(torch.zeros(2, 2))


def test_frequency_weights():
    weight = spectral.freq_weight_1d(8)
    assert weight[0] == 4 and weight[-1] == 1
    assert spectral.freq_weight_nd((4, 8), 2).max() == 2
    assert torch.equal(
        spectral.freq_weight_nd((4, 8))[0],
        spectral.freq_weight_1d(8).clamp_max(spectral.freq_weight_1d(4)[0]),
    )


@pytest.mark.parametrize('channels', [1, 2, 3, 4])
def test_pictures_round_trip(channels, tmp_path):
    x = torch.rand(channels, 5, 7) * 2 - 1
    picture = images.to_pil_image(x[None])
    assert picture.size == (7, 5)
    assert (images.from_pil_image(picture) - x).abs().max() <= 1 / 255 + 1e-6
    images.save_image(tmp_path / 'a.png', x)
    assert [p.name for p in tmp_path.iterdir()] == ['a.png']


def test_to_pil_image_clamps_and_refuses():
    assert list(images.to_pil_image(torch.tensor([[[-3.0, 3.0, float('nan')]]])).tobytes()) == [
        0,
        255,
        0,
    ]
    with pytest.raises(ValueError, match=r'\[5, 2, 2\]'):
        images.to_pil_image(torch.zeros(5, 2, 2))


def test_grid_places_images_row_by_row():
    grid = images.make_grid(
        torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, 1, 2, 2), 2, padding=1, fill=9.0
    )
    assert grid[0].tolist() == [
        [0, 0, 9, 1, 1],
        [0, 0, 9, 1, 1],
        [9] * 5,
        [2, 2, 9, 9, 9],
        [2, 2, 9, 9, 9],
    ]
    with pytest.raises(ValueError, match='at least one image; got none'):
        images.make_grid([])


def test_a_file_is_whole_or_not_there(tmp_path):
    target = tmp_path / 'a.txt'
    target.write_text('old')
    with pytest.raises(RuntimeError), files.whole_file(target) as temporary:
        temporary.write_text('half')
        raise RuntimeError
    assert target.read_text() == 'old' and list(tmp_path.iterdir()) == [target]
    with files.whole_file(target) as temporary:
        temporary.write_text('new')
    assert target.read_text() == 'new' and list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    'text, complaint',
    [
        ('{"a": 1, "a": 2}', "'a' is given twice"),
        ('{"a": NaN}', 'NaN'),
        ('{"a": -Infinity}', 'Infinity'),
        ('{"a": ', 'line 1'),
        ('[' * 100000, 'less deeply'),
    ],
)
def test_bad_json_is_refused_by_name(text, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        files.read_json(text, 'c.json')
    assert 'c.json' in str(caught.value)


def test_download_checks_and_leaves_nothing(tmp_path):
    source = tmp_path / 'source'
    source.write_bytes(b'digits')
    good, progress = files.digest_of(source), []
    path = files.download_file(
        tmp_path / 'new' / 'file', source.as_uri(), good, lambda *a: progress.append(a)
    )
    assert path.read_bytes() == b'digits' and progress[-1][0] == 6
    assert files.download_file(path, 'https://nowhere.invalid/', good) == path
    with pytest.raises(OSError, match='as published; got'):
        files.download_file(tmp_path / 'other', source.as_uri(), '0' * 64)
    with pytest.raises(OSError, match='place it at'):
        files.download_file(tmp_path / 'other', (tmp_path / 'gone').as_uri())
    assert not (tmp_path / 'other').exists() and sorted(p.name for p in tmp_path.iterdir()) == [
        'new',
        'source',
    ]


def test_checkpoints_hold_data_only(tmp_path):
    path = tmp_path / 'a.pth'
    weights.save_checkpoint(path, {'step': 3, 'w': torch.ones(2)})
    assert weights.load_checkpoint(path)['w'].tolist() == [1, 1]
    marker = tmp_path / 'ran'

    class Hostile:
        def __reduce__(self):
            return (open, (str(marker), 'w'))

    torch.save({'x': Hostile()}, tmp_path / 'bad.pth')
    with pytest.raises(ValueError, match='could run code'):
        weights.load_checkpoint(tmp_path / 'bad.pth')
    assert not marker.exists()


@pytest.mark.parametrize('size', [0, 10, 500])
def test_a_cut_checkpoint_is_one_sentence(tmp_path, size):
    path = tmp_path / 'a.pth'
    weights.save_checkpoint(path, {'w': torch.ones(1000)})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r'a\.pth is damaged'):
        weights.load_checkpoint(path)
    with pytest.raises(FileNotFoundError, match='no checkpoint'):
        weights.load_checkpoint(tmp_path / 'none.pth')


def test_safetensors_carry_their_config(tmp_path):
    path = tmp_path / 'a.safetensors'
    weights.save_safetensors(path, {'w': torch.ones(2, 3).T}, {'model': {'type': 'x'}})
    assert weights.load_safetensors(path)['w'].shape == (3, 2)
    assert weights.load_safetensors_config(path) == {'model': {'type': 'x'}}
    weights.save_safetensors(path, {'w': torch.ones(2)})
    with pytest.raises(ValueError, match='has no config'):
        weights.load_safetensors_config(path)
    path.write_bytes(path.read_bytes()[:12])
    with pytest.raises(ValueError, match='damaged'):
        weights.load_safetensors(path)


def test_a_download_that_fails_leaves_no_folder(tmp_path):
    with pytest.raises(OSError, match='could not download'):
        files.download_file(tmp_path / 'a' / 'b' / 'file', (tmp_path / 'gone').as_uri())
    assert list(tmp_path.iterdir()) == []
