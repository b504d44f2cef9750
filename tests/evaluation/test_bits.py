"""Bits per dimension: of a model whose density is known, against sums over all levels."""

from __future__ import annotations

import math

import pytest
import torch

from k_diffusion import evaluation as E
from k_diffusion.denoisers.analytic import Gaussian

SEEDS = [3, 4, 5, 6]


def test_levels_are_filled_evenly():
    images = torch.tensor([0, 7, 255], dtype=torch.uint8)[:, None].expand(3, 4000)
    points = E.dequantised(images, [1, 2, 3])
    levels = (points + 1) * 127.5
    assert (levels.round() - images).abs().max() == 0
    assert ((levels - images).mean(1)).abs().max() < 0.02 and levels.std(
        1
    ).mean().item() == pytest.approx(12**-0.5, abs=0.01)
    assert torch.equal(E.dequantised(images[1:], [2, 3]), points[1:])


def test_a_flat_density_takes_eight_bits():
    assert E.bits_per_dim(
        torch.full([2, 1], 10 * math.log(127.5 / 256)), 10
    ).tolist() == pytest.approx([8.0, 8.0])
    mixed = E.bits_per_dim(torch.tensor([[0.0, math.log(3.0)]]), 1)
    assert mixed.item() == pytest.approx(-math.log2(2) + math.log2(127.5))


def test_bits_of_a_gaussian():
    """The mean over the model's own pictures is the entropy of its levels, which a wide Gaussian
    has in closed form.
    """
    std, source = 0.3, torch.Generator().manual_seed(0)
    x = torch.randn(60, 1, 8, 8, generator=source) * std
    images = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    model = Gaussian(torch.tensor(0.0), torch.tensor(std))
    bits = E.image_bits(model, images, 0.001, 80.0, range(60), data_std=std, batch_size=16)
    entropy = math.log2(std * math.sqrt(2 * math.pi * math.e)) + math.log2(127.5)
    assert bits.mean().item() == pytest.approx(entropy, abs=4 * bits.std().item() / math.sqrt(60))
    assert bits.shape == (60,) and bits.std() > 0.01


def test_more_points_tighten_the_bound():
    """On pictures of one level each, under a density narrower than a level."""
    model = Gaussian(torch.tensor(127 / 127.5 - 1), torch.tensor(0.0005))
    images = torch.full([40, 1, 1, 1], 127, dtype=torch.uint8)
    prior = {'data_std': 0.0005, 'data_mean': model.mean}
    one, many = (
        E.image_bits(model, images, 1e-5, 80.0, range(40), points=points, steps=12, **prior)
        .mean()
        .item()
        for points in (1, 64)
    )
    assert one > 10 and 0 <= many + 0.05 < 0.5


def test_a_picture_is_the_same_alone_and_told_its_condition():
    model = lambda x, sigma, shift: Gaussian(shift[:, None, None, None], torch.tensor(0.5))(
        x, sigma
    )
    images, shift = (
        torch.randint(256, (4, 1, 3, 3), dtype=torch.uint8),
        torch.tensor([-1.0, 0.0, 0.5, 1.0]),
    )
    done = []
    together = E.image_bits(
        model,
        images,
        0.01,
        80.0,
        SEEDS,
        {'shift': shift},
        data_std=0.5,
        report=done.append,
        batch_size=3,
    )
    alone = E.image_bits(
        model, images, 0.01, 80.0, SEEDS, {'shift': shift}, data_std=0.5, batch_size=1
    )
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)
    assert done == [3, 4]
    other = E.image_bits(model, images, 0.01, 80.0, SEEDS, {'shift': shift + 3}, data_std=0.5)
    assert (other - together).abs().min() > 0.1
