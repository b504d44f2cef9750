"""Data sets of tensor files: layouts, types, scaling, labels, crops and flips, and what is
refused.
"""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from k_diffusion.data import Loader, TensorsConfig, blobs, open_dataset, waves
from k_diffusion.data.arrays import open_array
from k_diffusion.data.tensor_files import restore


def opened(location, size, channels, **keys):
    return open_dataset(TensorsConfig(location=str(location), **keys), size, channels)


def save(path, x):
    """Write a tensor in the format that a path ends in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == '.npy':
        np.save(path, x.numpy())
    elif path.suffix == '.safetensors':
        save_file({'x': x}, path)
    else:
        torch.save(x, path)
    return path


@pytest.mark.parametrize('ending', ['.npy', '.safetensors', '.pt'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize('shape', [(5, 3, 16), (5, 7, 4, 6), (5, 2, 4, 6, 8)])
def test_a_stack_of_any_float_type_and_number_of_axes(tmp_path, ending, dtype, shape):
    x = torch.randn(shape).to(dtype)
    data = opened(save(tmp_path / f'all{ending}', x), shape[2:], shape[1])
    assert (
        len(data) == 5
        and data.image_shape == shape[1:]
        and data.mean is None
        and data.num_classes == 0
    )
    read = data.read([3, 0], [1, 2])['image']
    assert read.dtype == torch.float32 and torch.equal(read, x[[3, 0]].float())
    assert (
        torch.equal(data[4]['image'], x[4].float()) and data.name(4) == f'{tmp_path}/all{ending}[4]'
    )


def test_a_folder_of_items_and_stacks_in_the_order_of_names(tmp_path):
    x = torch.randn(6, 2, 8)
    save(tmp_path / 'a.npy', x[0])
    save(tmp_path / 'b' / 'stack.safetensors', x[1:4].clone())
    save(tmp_path / 'b' / 'z.pt', x[4].clone())
    save(tmp_path / 'c.npy', x[5])
    (tmp_path / '.hidden.npy').write_bytes(b'')
    (tmp_path / 'notes.txt').write_text('none')
    data = opened(tmp_path, (8,), 2)
    assert len(data) == 6 and torch.equal(torch.stack([data[i]['image'] for i in range(6)]), x)


def test_the_channel_axis_may_be_missing_where_there_is_one_channel(tmp_path):
    x = torch.randn(4, 8)
    assert torch.equal(opened(save(tmp_path / 'a.npy', x), (8,), 1)[2]['image'], x[2:3])
    assert len(opened(save(tmp_path / 'b.npy', x[0]), (8,), 1)) == 1
    field = opened(save(tmp_path / 'c.npy', torch.zeros(4, 6, 8)), (6, 8), 1)
    assert len(field) == 4 and field[0]['image'].shape == (1, 6, 8)


def test_numpy_files_of_other_byte_orders_and_layouts(tmp_path):
    x = np.random.default_rng(0).normal(size=(3, 2, 4, 5))
    np.save(tmp_path / 'a.npy', np.asfortranarray(x).astype('>f8'))
    np.testing.assert_array_equal(
        opened(tmp_path / 'a.npy', (4, 5), 2)[1]['image'].numpy(), x[1].astype('f4')
    )


@pytest.mark.parametrize(
    'dtype, low, high',
    [(torch.uint8, 0, 255), (torch.int16, -32768, 32767), (torch.int8, -128, 127)],
)
def test_small_whole_numbers_fill_their_range(tmp_path, dtype, low, high):
    data = opened(save(tmp_path / 'x.npy', torch.tensor([[[low, high, 0]]], dtype=dtype)), (3,), 1)
    torch.testing.assert_close(data[0]['image'][0, :2], torch.tensor([-1.0, 1.0]))
    torch.testing.assert_close(
        data[0]['image'][0, 2].item(), -low / (high - low) * 2 - 1, rtol=1e-6, atol=1e-6
    )


def test_a_declared_range_and_the_way_back(tmp_path):
    x = torch.tensor([[[0, 2048, 4095]]], dtype=torch.int32)
    data = opened(save(tmp_path / 'x.npy', x), (3,), 1, range=(0.0, 4095.0))
    assert data[0]['image'][0, 0] == -1 and data[0]['image'][0, 2] == 1
    torch.testing.assert_close(restore(data[0]['image'][None], data.mean, data.std), x.float())
    assert (
        torch.equal(data.without_scale()[0]['image'], x[0].float()) and data[0]['image'][0, 0] == -1
    )


def test_standardised_channels_have_mean_0_and_deviation_1_also_far_from_0(tmp_path):
    # A pressure about 1e8 with a deviation of 3: float32 has no digits left for it, and sums of
    # squares none in float64.
    x = torch.stack(
        [
            1e8 + 3 * torch.randn(50, 40, dtype=torch.float64),
            0.1 * torch.randn(50, 40, dtype=torch.float64),
        ],
        1,
    )
    data = opened(save(tmp_path / 'x.npy', x), (40,), 2, standardize=True)
    torch.testing.assert_close(
        torch.tensor(data.mean, dtype=torch.float64), x.mean((0, 2)), rtol=1e-12, atol=1e-9
    )
    torch.testing.assert_close(
        torch.tensor(data.std, dtype=torch.float64), x.std((0, 2), correction=0), rtol=1e-6, atol=0
    )
    scaled = torch.stack([data[i]['image'] for i in range(50)])
    torch.testing.assert_close(scaled.mean((0, 2)), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(scaled.std((0, 2), correction=0), torch.ones(2), rtol=0, atol=1e-5)
    again = opened(tmp_path / 'x.npy', (40,), 2, mean=data.mean, std=data.std)
    assert torch.equal(again[7]['image'], scaled[7])


@pytest.mark.parametrize('axes', [[], [0], [0, 2]])
def test_random_crops_and_flips_are_a_function_of_the_seed_and_reach_every_place(tmp_path, axes):
    places = torch.arange(6 * 6 * 6.0).view(1, 6, 6, 6)
    data = opened(save(tmp_path / 'x.npy', places), (4, 4, 4), 1, crop='random', flip=axes)
    crops = [data.read([0], [seed])['image'][0] for seed in range(1200)]
    assert torch.equal(crops[5], data.read([0, 0], [7, 5])['image'][1])
    windows = {
        tuple(x.flatten().tolist())
        for x in (places.unfold(1, 4, 1).unfold(2, 4, 1).unfold(3, 4, 1).reshape(-1, 4, 4, 4))
    }
    expected = set()
    for window in windows:
        x = torch.tensor(window).view(4, 4, 4)
        for mask in range(2 ** len(axes)):
            expected.add(
                tuple(
                    x.flip([axis for i, axis in enumerate(axes) if mask >> i & 1])
                    .flatten()
                    .tolist()
                )
            )
    actual = {tuple(x.flatten().tolist()) for x in crops}
    assert actual == expected and len(expected) == 27 * 2 ** len(axes)


def test_a_centre_crop(tmp_path):
    data = opened(save(tmp_path / 'x.npy', torch.arange(10.0).view(1, 10)), (4,), 1, crop='centre')
    assert data[0]['image'].tolist() == [[3.0, 4.0, 5.0, 6.0]]


def test_labels_of_folders_files_and_tensors(tmp_path):
    x, labels = torch.randn(4, 1, 8), torch.tensor([2, 0, 1, 2])
    save(tmp_path / 'f' / 'cat' / 'a.npy', x[:3])
    save(tmp_path / 'f' / 'ant' / 'b.npy', x[3])
    data = opened(tmp_path / 'f', (8,), 1, labels='folders')
    assert data.class_names == ['ant', 'cat'] and [
        data[i]['class_cond'].item() for i in range(4)
    ] == [0, 1, 1, 1]
    save(tmp_path / 'g' / 'x.npy', x)
    save(tmp_path / 'g' / 'classes.npy', labels)
    data = opened(tmp_path / 'g', (8,), 1, labels='classes.npy', num_classes=5)
    assert (
        len(data) == 4
        and data.num_classes == 5
        and data.read([0, 2], [0, 0])['class_cond'].tolist() == [2, 1]
    )
    save_file({'wave': x, 'kind': labels}, tmp_path / 'h.safetensors')
    data = opened(tmp_path / 'h.safetensors', (8,), 1, key='wave', labels='kind')
    assert (
        data.num_classes == 3
        and torch.equal(data.labels, labels)
        and torch.equal(data[1]['image'], x[1])
    )


def test_the_stream_of_batches_is_that_of_other_data_sets(tmp_path):
    x = waves(10, 12, 2)
    data = opened(save(tmp_path / 'x.npy', x), (8,), 2, crop='random', flip=[0])
    whole = Loader(data, 4, seed=3).iterate()
    first, second = next(whole), next(whole)
    halves = [Loader(data, 2, seed=3, rank=rank, world_size=2) for rank in (0, 1)]
    parts = [next(loader.iterate()) for loader in halves]
    assert torch.equal(torch.cat([part['image'] for part in parts]), first['image'])
    assert torch.equal(next(Loader(data, 4, seed=3).iterate(4))['image'], second['image'])
    assert first['image'].shape == (4, 2, 8) and first['image'].dtype == torch.float32


def test_a_large_file_is_not_read_at_once(tmp_path):
    import resource

    path = tmp_path / 'large.npy'
    big = np.lib.format.open_memmap(
        path, mode='w+', dtype='float32', shape=(64, 1, 2**20)
    )  # 256 MiB, sparse
    big[5] = 1.0
    del big
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    data = opened(path, (1024,), 1, crop='centre')
    assert data[5]['image'].mean() == 1 and data[6]['image'].mean() == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


def test_a_replaced_file_is_read_anew(tmp_path):
    save(tmp_path / 'x.npy', torch.zeros(2, 1, 4))
    assert opened(tmp_path / 'x.npy', (4,), 1)[0]['image'].sum() == 0
    save(tmp_path / 'x.npy', torch.ones(3, 1, 4))
    data = opened(tmp_path / 'x.npy', (4,), 1)
    assert len(data) == 3 and data[0]['image'].sum() == 4


class Ran:
    """Says so when it is unpickled."""

    def __reduce__(self):
        return (print, ('it ran',))


def test_nothing_in_a_file_runs(tmp_path, capsys):
    torch.save({'x': Ran()}, tmp_path / 'a.pt')
    np.save(tmp_path / 'b.npy', np.array([Ran()], dtype=object), allow_pickle=True)
    (tmp_path / 'c.npy').write_bytes(pickle.dumps(Ran()))
    for name in ('a.pt', 'b.npy', 'c.npy'):
        with pytest.raises(ValueError, match=name):
            opened(tmp_path / name, (4,), 1)
    assert 'it ran' not in capsys.readouterr().out


@pytest.mark.parametrize(
    'x, keys, words',
    [
        (
            torch.zeros(3, 2, 8),
            {'channels': 3},
            r'must hold an item \[C, L\] or a stack \[N, C, L\].*got shape \[3, 2, 8\]',
        ),
        (
            torch.zeros(3, 2, 8),
            {'size': (4,)},
            r'sides \[4\] of model.input_size; got \[8\]: set dataset.crop',
        ),
        (torch.zeros(3, 2, 8), {'size': (16,), 'crop': 'random'}, r'got \[8\]: pad them'),
        (torch.zeros(3, 2, 8, dtype=torch.int64), {}, r'dataset.range must be given for int64'),
        (
            torch.zeros(3, 2, 8),
            {'flip': [1]},
            r'dataset.flip must hold spatial axes from 0 to 0; got \[1\]',
        ),
        (
            torch.zeros(3, 2, 8),
            {'mean': [0.0] * 3, 'std': [1.0] * 3},
            'dataset.mean must have one number, or one for each of 2 channels',
        ),
        (torch.zeros(3, 2, 8), {'labels': 'folders'}, 'unless all files of .* are in folders'),
        (
            torch.full((3, 2, 8), torch.nan),
            {'standardize': True},
            r'x.npy\[0\] must hold finite numbers',
        ),
        (
            torch.zeros(3, 2, 8, dtype=torch.complex64),
            {},
            'must hold real numbers; got complex64: take real and imaginary',
        ),
        (torch.zeros(3, 2, 8), {'num_classes': 2}, 'has no classes'),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, x, keys, words):
    section_keys = {'size': (8,), 'channels': 2, **keys}
    with pytest.raises(ValueError, match=words):
        opened(save(tmp_path / 'x.npy', x), **section_keys)


def test_what_cannot_be_meant_is_said(tmp_path):
    for keys, words in (
        ({'range': (1.0, 0.0)}, 'range must be'),
        ({'mean': [0.0]}, 'together'),
        ({'mean': [0.0], 'std': [0.0]}, 'with std > 0'),
        ({'range': (0.0, 2.0), 'standardize': True}, 'must not both'),
        ({'range': (0.0, 2.0), 'mean': [0.0], 'std': [1.0]}, r'must be \(\[1.0\], \[1.0\]\)'),
    ):
        with pytest.raises(ValueError, match=words):
            TensorsConfig(location='x', **keys)
    save_file({'a': torch.zeros(2), 'b': torch.zeros(2)}, tmp_path / 'two.safetensors')
    with pytest.raises(ValueError, match='holds the tensors a, b; dataset.key must name one'):
        open_array(tmp_path / 'two.safetensors')
    with pytest.raises(FileNotFoundError, match='no data at .*none'):
        opened(tmp_path / 'none', (8,), 1)
    with pytest.raises(ValueError, match='must hold files of tensors'):
        (tmp_path / 'empty').mkdir()
        opened(tmp_path / 'empty', (8,), 1)


def test_the_synthetic_sets_are_what_they_say():
    x = waves(500, 64, 2)
    torch.testing.assert_close(x.square().sum(1), torch.ones(500, 64))  # a sine and a cosine
    assert abs(x.std().item() - 0.5**0.5) < 0.01
    volume = blobs(200, (12, 12, 12))
    assert (
        volume.shape == (200, 1, 12, 12, 12)
        and volume.min() >= -1
        and 0.8 < volume.amax((1, 2, 3, 4)).min() <= 1
    )
    assert torch.equal(waves(3), waves(3)) and not torch.equal(waves(3), waves(3, seed=1))
