"""Features of data that are not pictures: levels over a grid, power by bands of frequency."""

import math

import pytest
import torch

from k_diffusion.data import blobs, waves
from k_diffusion.evaluation import TensorFeatureExtractor, extract, fid
from k_diffusion.evaluation.tensors import BANDS, band_powers


@pytest.mark.parametrize(
    'shape, width',
    [
        ((3, 2, 40), 2 * (16 + BANDS)),
        ((3, 2, 9), 2 * (9 + BANDS)),
        ((3, 5, 12, 20), 5 * (36 + BANDS)),
        ((3, 1, 8, 9, 10), 64 + BANDS),
    ],
)
def test_shapes_and_independence_of_neighbours(shape, width):
    x = torch.randn(shape)
    features = TensorFeatureExtractor()(x)
    assert features.shape == (3, width)
    torch.testing.assert_close(TensorFeatureExtractor()(x[1:2]), features[1:2])
    torch.testing.assert_close(
        TensorFeatureExtractor()(torch.randn(4, 6)).shape, torch.Size([4, 6])
    )


def test_the_means_of_pieces():
    x = torch.arange(64.0).view(1, 1, 64)
    torch.testing.assert_close(TensorFeatureExtractor()(x)[0, :16], 1.5 + 4 * torch.arange(16.0))


@pytest.mark.parametrize('frequency', [2, 9, 30])
def test_a_sine_lies_in_the_band_of_its_frequency(frequency):
    x = (2 * math.pi * frequency * torch.arange(64) / 64).sin().view(1, 1, 64)
    powers = band_powers(x)[0, 0]
    band = math.ceil(frequency / 64 * 2 * BANDS) - 1
    assert powers.argmax() == band
    # Parseval: 64 values of mean square 1/2 in two of the band's coefficients, of which a band has
    # 4 on each side (in the last, 3 and 1)
    count = sum(math.ceil(min(k, 64 - k) / 64 * 2 * BANDS) - 1 == band for k in range(1, 64))
    torch.testing.assert_close(powers[band].item(), math.log10(32 / count), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    'real, other',
    [
        (lambda n, seed: waves(n, 48, 2, seed), lambda n: torch.randn(n, 2, 48) / 2**0.5),
        (
            lambda n, seed: blobs(n, (8, 8, 8), 1, seed),
            lambda n: blobs(n, (8, 8, 8), 1, 5).mul(0.8),
        ),
    ],
)
def test_data_are_nearer_to_more_of_them_than_to_others(real, other):
    features = TensorFeatureExtractor()
    reference = extract(features, [real(300, 0)], round_pictures=False)
    same = fid(extract(features, [real(300, 1)], round_pictures=False), reference)
    assert same < 0.2 * fid(extract(features, [other(300)], round_pictures=False), reference)
