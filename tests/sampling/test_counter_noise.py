"""Noise of samplers from the counter-based generator: per item, and the same on every device."""

from __future__ import annotations

import math

import pytest
import torch

import k_diffusion as K
from k_diffusion import sampling
from k_diffusion.core import random as core_random
from k_diffusion.core.philox import draw_normals
from k_diffusion.core.random import derive_seed

X = torch.zeros(4, 20_000)
SEEDS = [11, 2**40, 13, 14]


@pytest.mark.parametrize('kind', ['path', 'independent'])
def test_an_item_follows_its_seed(kind):
    def walk(x, seeds):
        noise = sampling.make_noise_sampler(x, kind, seeds, counter=True)
        return torch.stack([noise(a, b) for a, b in ((80.0, 9.0), (9.0, 1.0), (1.0, 0.1))], 1)

    whole = walk(X, SEEDS)
    torch.testing.assert_close(walk(X[1:3], SEEDS[1:3]), whole[1:3])
    rows = whole.flatten(0, 1)
    gram = rows @ rows.T / rows.shape[1]  # unit variance; items and steps independent
    torch.testing.assert_close(gram, torch.eye(12), rtol=0, atol=5 / math.sqrt(X.shape[1]))


def test_independent_noise_is_that_of_the_generator():
    noise = sampling.make_noise_sampler(X, 'independent', SEEDS, counter=True)
    noise(2.0, 1.0)
    expected = draw_normals(derive_seed(0, 'step', 2), SEEDS, [20_000])
    assert torch.equal(noise(1.0, 0.5), expected)


def test_a_path_is_the_same_in_steps_of_any_number():
    few, many = (
        sampling.BrownianTreeNoiseSampler(X, 0.3, 10.0, SEEDS, counter=True) for _ in range(2)
    )
    halves = many(8.0, 4.0) * 2 + many(4.0, 1.0) * math.sqrt(3)
    torch.testing.assert_close(few(8.0, 1.0) * math.sqrt(7), halves, atol=1e-4, rtol=1e-4)


def test_samples_take_it_where_they_are_asked(monkeypatch):
    def denoise(x, sigma):
        return x / (1 + sigma.view(-1, 1, 1, 1) ** 2)

    def sample(shape, seeds, **options):
        return K.sample(denoise, shape, 4, 'dpmpp_2m_sde', 'karras', seeds, **options)

    usual = sample([3, 1, 4, 4], [1, 2, 3])

    def fail(*args):
        raise AssertionError('a generator of torch was asked')

    monkeypatch.setattr(core_random, 'randn_items', fail)
    samples = sample([3, 1, 4, 4], [1, 2, 3], counter_noise=True)
    assert not torch.allclose(samples, usual) and samples.isfinite().all()
    alone = sample([1, 1, 4, 4], [2], counter_noise=True)
    torch.testing.assert_close(alone, samples[1:2])
    with pytest.raises(AssertionError, match='a generator of torch was asked'):
        sample([3, 1, 4, 4], [1, 2, 3])
