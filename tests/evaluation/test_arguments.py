"""Arguments of K.evaluation: arrays and lists count as tensors do, and mistakes are sentences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from k_diffusion import evaluation as E

SOURCE = np.random.default_rng(0)
X, Y = SOURCE.normal(size=(60, 5)), SOURCE.normal(size=(80, 5)) + 0.3
PICTURES = SOURCE.integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)


class Lone:
    """An accelerator of one process."""

    num_processes = 1

    def gather(self, x):
        return x


class Items:
    def __getitem__(self, index):
        return {'image': PICTURES[index]}


def patches(x):
    return torch.nn.functional.avg_pool2d(x, 4).flatten(1)


OF_PAIRS = {
    'fid': E.fid,
    'fid_infinity': E.fid_infinity,
    'fid_with_error': E.fid_with_error,
    'kid': E.kid,
    'kid_subsets': lambda x, y: E.kid_subsets(x, y, 3, 20),
    'kid_with_error': E.kid_with_error,
    'squared_mmd': E.squared_mmd,
    'cmmd': E.cmmd,
    'precision_recall': E.precision_recall,
    'density_coverage': E.density_coverage,
    'polynomial_kernel': E.polynomial_kernel,
    'measure': lambda x, y: list(E.measure(x, y, E.METRICS.keys() - {'floor'}, 5).values()),
    'moments': lambda x, y: E.frechet_distance(E.Moments.of(x), E.Moments.of(y)),
    'neighbours': lambda x, y: E.nearest_neighbours(x, y).distance,
}


def tensors(value):
    return value if isinstance(value, torch.Tensor) else torch.as_tensor(np.asarray(value, float))


@pytest.mark.parametrize('name', OF_PAIRS)
def test_arrays_and_lists_give_what_tensors_give(name):
    call = OF_PAIRS[name]
    expected = tensors(call(torch.from_numpy(X), torch.from_numpy(Y)))
    readonly = X.copy()
    readonly.flags.writeable = False
    for x, y in (
        (X, Y),
        (X.tolist(), Y.tolist()),
        (list(X), [torch.from_numpy(row) for row in Y]),
        (readonly[::-1][::-1], np.asfortranarray(Y)),
        (X.astype('>f8'), Y),
    ):
        torch.testing.assert_close(tensors(call(x, y)), expected, rtol=1e-9, atol=1e-9)


def test_other_functions_take_arrays():
    root = E.sqrtm_eig(np.diag([4.0, 9.0]))
    torch.testing.assert_close(root, torch.diag(torch.tensor([2.0, 3.0], dtype=torch.float64)))
    assert E.Moments.of([X[:20], X[20:]]).n == E.Moments.of(X.tolist()).n == 60
    assert E.jackknife(lambda rows: rows.mean().item(), X)[0] == pytest.approx(X.mean())
    assert E.bootstrap(lambda rows: rows.mean().item(), X.tolist(), 5)[0] > 0
    bits = E.bits_per_dim([[0.0], [math.log(2)]], 1)
    assert (bits[0] - bits[1]).item() == pytest.approx(1)
    points = E.dequantised(PICTURES, range(40))
    assert torch.equal(((points + 1) * 127.5).round(), torch.from_numpy(PICTURES).float())
    torch.testing.assert_close(
        E.image_bits(lambda x, sigma: x * 0, PICTURES[:2], 0.01, 80.0, [1, 2], steps=2),
        E.image_bits(
            lambda x, sigma: x * 0, torch.from_numpy(PICTURES[:2]), 0.01, 80.0, [1, 2], steps=2
        ),
    )
    labels = np.arange(40) % 2
    network = E.train_classifier(PICTURES, labels.tolist(), 2, steps=1)
    assert torch.equal(network(PICTURES), network(torch.from_numpy(PICTURES) / 127.5 - 1))
    neighbours = E.nearest_neighbours(PICTURES[:5], PICTURES)
    assert neighbours.index.tolist() == [0, 1, 2, 3, 4] and neighbours.distance.max() < 1e-6
    assert E.neighbour_picture(PICTURES[:5], PICTURES, neighbours, 2).shape[0] == 1


def test_bytes_and_floats_are_pictures_on_one_scale():
    """Pixels of bytes are not compared with pixels in [-1, 1] as they stand."""
    neighbours = E.nearest_neighbours(PICTURES[:5] / 127.5 - 1, PICTURES)
    assert neighbours.index.tolist() == [0, 1, 2, 3, 4] and neighbours.distance.max() < 1e-6


def test_features_of_arrays():
    floats = PICTURES / 127.5 - 1
    expected = floats.reshape(40, 1, 2, 4, 2, 4).mean((3, 5)).reshape(40, 4)
    for pictures in (PICTURES, floats, [PICTURES[:30], PICTURES[30:]], iter([floats])):
        np.testing.assert_allclose(E.extract(patches, pictures), expected, atol=1e-6)
    features_of_samples = E.compute_features(
        Lone(), lambda n: floats[:n], lambda x: patches(x).numpy(), 7, 7
    )
    np.testing.assert_allclose(features_of_samples, expected[:7], atol=1e-6)
    features_of_items = E.reference_features(Items(), np.arange(6), patches)
    np.testing.assert_allclose(features_of_items, expected[:6], atol=1e-6)


BAD = {
    'integers': (X.astype(np.int64), Y),
    'bytes': (torch.zeros(60, 5, dtype=torch.uint8), Y),
    'complex numbers': (X + 1j, Y),
    'NaN': (np.where(X > 1, np.nan, X), Y),
    'infinity': (X, np.where(Y > 1, np.inf, Y)),
    'one axis': (X[:, 0], Y),
    'three axes': (X[None], Y),
    'no rows': (X[:0], Y),
    'no columns': (X[:, :0], Y[:, :0]),
    'other widths': (X, Y[:, :3]),
    'text': ('features.npy', Y),
    'nothing': (X, None),
    'a ragged list': ([[1.0, 2.0], [3.0]], Y),
    'a list of words': ([['a', 'b']], Y),
    'a dict': ({}, Y),
    'objects': (np.array([[None, 1]]), Y),
    'a number': (3.0, Y),
}


#: A kernel of rows is defined for these.
OF_ROWS = 'NaN', 'infinity', 'three axes', 'no rows'


@pytest.mark.parametrize(
    'name, mistake',
    [
        (name, mistake)
        for name in OF_PAIRS
        for mistake in BAD
        if name != 'polynomial_kernel' or mistake not in OF_ROWS
    ],
)
def test_wrong_features_are_refused_in_words(name, mistake):
    x, y = BAD[mistake]
    with pytest.raises((ValueError, TypeError), match=r'must (be|have|hold) .*(;|:) got '):
        OF_PAIRS[name](x, y)


@pytest.mark.parametrize(
    'call',
    [
        lambda: E.kid(X, Y, 1),
        lambda: E.kid(X, Y, 2.5),
        lambda: E.kid_subsets(X, Y, 0),
        lambda: E.kid_with_error(X, Y, 1),
        lambda: E.cmmd(X, Y, 0.0),
        lambda: E.cmmd(X, Y, chunk=0),
        lambda: E.precision_recall(X, Y, 0),
        lambda: E.precision_recall(X, Y, 60),
        lambda: E.density_coverage(X, Y, 1.5),
        lambda: E.precision_recall(X, Y, chunk=0),
        lambda: E.fid_infinity(X, Y, 2),
        lambda: E.fid_infinity(X, Y, smallest=1.0),
        lambda: E.fid_with_error(X, Y, 1),
        lambda: E.measure(X, Y, blocks=-1),
        lambda: E.jackknife(lambda rows: 0.0, X[:3]),
        lambda: E.bootstrap(lambda rows: 0.0, X, 1),
        lambda: E.bootstrap(lambda rows: 0.0, X, level=1.0),
        lambda: E.bootstrap(lambda rows: 0.0, 3.0),
        lambda: E.frechet_distance(X, Y),
        lambda: E.frechet_distance(E.Moments.of(X), E.Moments.of(Y[:, :2])),
        lambda: E.Moments.of([X, Y[:, :2]]),
        lambda: E.Moments().covariance,
        lambda: E.Moments.of(X.astype(int)),
        lambda: E.sqrtm_eig(X),
        lambda: E.sqrtm_eig(X[:5] * np.nan),
        lambda: E.sqrtm_eig(np.eye(2, dtype=int)),
        lambda: E.caution('many'),
        lambda: E.bits_per_dim([0.0], 1),
        lambda: E.bits_per_dim([[0.0]], 0),
        lambda: E.dequantised(PICTURES / 255, range(40)),
        lambda: E.dequantised(PICTURES, range(3)),
        lambda: E.image_bits(lambda x, s: x, PICTURES[0], 0.1, 1.0, [0]),
        lambda: E.image_bits(lambda x, s: x, PICTURES, 0.1, 1.0, 7),
        lambda: E.nearest_neighbours(PICTURES, PICTURES[:, :, :4]),
        lambda: E.nearest_neighbours(X, Y[:1]),
        lambda: E.nearest_neighbours(X[:, 0], Y),
        lambda: E.neighbour_picture(X, Y, E.nearest_neighbours(X, Y)),
        lambda: E.neighbour_picture(PICTURES, PICTURES, None),
        lambda: E.train_classifier(PICTURES, np.arange(40), 2),
        lambda: E.train_classifier(PICTURES, np.zeros(3), 2),
        lambda: E.train_classifier(PICTURES / 255, np.zeros(40), 2),
        lambda: E.cached_classifier('nowhere', PICTURES[:, 0], np.zeros(40), 2),
        lambda: E.train_classifier(PICTURES, np.arange(40) % 2, 2, steps=1)(np.zeros((2, 3, 8, 8))),
        lambda: E.extract(patches, []),
        lambda: E.extract(patches, PICTURES[0]),
        lambda: E.extract(lambda x: x, PICTURES),
        lambda: E.extract(patches, PICTURES.astype(np.int32)),
        lambda: E.compute_features(Lone(), lambda n: 'none', patches, 3, 3),
        lambda: E.compute_features(Lone(), lambda n: PICTURES, patches, 3.5, 3),
        lambda: E.reference_features([PICTURES[0]], [0], patches),
        lambda: E.reference_features(Items(), [], patches),
    ],
)
def test_other_mistakes_are_refused_in_words(call):
    with pytest.raises((ValueError, TypeError), match=r'must (be|have|hold) .*(;|:) got '):
        call()


@pytest.mark.parametrize('kind', [torch.float16, torch.bfloat16, torch.float64])
def test_pictures_of_any_precision_are_taken_by_extractors(kind):
    network = E.train_classifier(PICTURES, np.arange(40) % 2, 2, steps=1)
    pictures = (torch.from_numpy(PICTURES) / 127.5 - 1).to(kind)
    expected = network(pictures.float())
    torch.testing.assert_close(network(pictures), expected)
    torch.testing.assert_close(network(pictures.tolist()), expected)


@pytest.mark.parametrize(
    'pictures',
    [list(PICTURES), [torch.from_numpy(p) for p in PICTURES], (PICTURES / 127.5 - 1).tolist()],
)
def test_a_list_of_pictures_is_a_batch(pictures):
    assert torch.equal(E.extract(patches, pictures), E.extract(patches, PICTURES))


@pytest.mark.parametrize(
    'call',
    [
        lambda x: E.extract(patches, x),
        lambda x: E.neighbour_picture(x, x, E.nearest_neighbours(X, Y)),
        lambda x: E.train_classifier(PICTURES, np.arange(40) % 2, 2, steps=1)(x),
        lambda x: E.nearest_neighbours(x, x),
        lambda x: E.compute_features(Lone(), lambda n: x, patches, 3, 3),
    ],
)
@pytest.mark.parametrize(
    'pictures, message',
    [
        (PICTURES.transpose(0, 2, 3, 1), r'channels last\. permute\(0, 3, 1, 2\)'),
        (PICTURES.astype(np.float32), r'in \[-1, 1\].* got values to 255\. x / 127.5 - 1'),
    ],
)
def test_pictures_of_another_order_or_scale_are_refused(call, pictures, message):
    with pytest.raises(ValueError, match=message):
        call(pictures)


@pytest.mark.parametrize('values', [[[-1, 2]], [[256, 2]], [[1.5, 2]], [[math.nan, 2]]])
def test_lists_of_what_is_no_level_are_refused(values):
    with pytest.raises(ValueError, match='must hold integers from 0 to 255'):
        E.dequantised(values, [0])


@pytest.mark.parametrize('seeds', [np.arange(3), torch.arange(3), [np.int64(i) for i in range(3)]])
def test_seeds_of_numpy_and_torch_are_those_of_python(seeds):
    expected = E.dequantised(PICTURES[:3], [0, 1, 2])
    assert torch.equal(E.dequantised(PICTURES[:3], seeds), expected)
    assert E.kid_subsets(X, Y, 3, 20, seed=seeds[1]) == E.kid_subsets(X, Y, 3, 20, seed=1)


@pytest.mark.parametrize(
    'call',
    [
        lambda: E.interval(1.0, 0.1, 0),
        lambda: E.interval(1.0, 0.1, 3, level=1.0),
        lambda: E.fid(torch.from_numpy(X).to('meta'), Y),
        lambda: E.fid(X, torch.from_numpy(Y).to_sparse()),
        lambda: E.image_bits(
            lambda x, s, y: x, PICTURES[:3], 0.1, 1.0, [0, 1, 2], {'y': np.zeros(2)}
        ),
        lambda: E.image_bits(
            lambda x, s, y: x, PICTURES[:3], 0.1, 1.0, [0, 1, 2], {'y': np.zeros(())}
        ),
    ],
)
def test_more_mistakes_are_refused_in_words(call):
    with pytest.raises((ValueError, TypeError), match=r'must (be|have|hold) .*; got '):
        call()
