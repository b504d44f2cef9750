"""Programs replace names on k_diffusion.sampling to change what samplers draw, compute and show;
each replacement must reach them.
"""

from unittest import mock

import pytest
import torch
from sampler_cases import suited
from tqdm import trange

import k_diffusion.sampling as sampling

SIGMAS = torch.tensor([10.0, 4.0, 1.0, 0.3, 0.1, 0.0])
X = torch.linspace(-1, 1, 6).reshape(2, 3) * 10


def denoiser(x, sigma):
    return torch.tanh(x) / (1 + sigma[:, None])


class TorchHijack:
    """torch, but for its randn_like, as web UIs put it in place of torch."""

    def __init__(self):
        self.draws = 0

    def __getattr__(self, name):
        return getattr(torch, name)

    def randn_like(self, x):
        self.draws += 1
        return torch.full_like(x, self.draws)


@pytest.mark.parametrize(
    ('name', 'options', 'draws'),
    [
        ('euler', {'s_churn': 1.0}, 5),
        ('euler', {}, 0),
        ('heun', {'s_churn': 1.0}, 5),
        ('dpm_2', {'s_churn': 1.0}, 5),
        ('euler_ancestral', {}, 4),
        ('dpmpp_2s_ancestral', {}, 4),
        ('dpm_2_ancestral', {}, 4),
    ],
)
def test_torch(name, options, draws):
    function, hijack = sampling.SAMPLERS[name].function, TorchHijack()
    plain = function(denoiser, X, SIGMAS, disable=True)
    sampling.torch = hijack
    try:
        patched = function(denoiser, X, SIGMAS, disable=True, **options)
    finally:
        sampling.torch = torch
    assert hijack.draws == draws
    assert draws == 0 or (patched - plain).abs().max() > 1e-4
    function(denoiser, X, SIGMAS, disable=True, **options)
    assert hijack.draws == draws and sampling.samplers.euler.torch is torch  # restored everywhere


def test_every_sampler_runs_with_torch_replaced():
    with mock.patch.object(sampling, 'torch', TorchHijack()):
        for entry in sampling.SAMPLERS.values():
            arguments = {'sigmas': SIGMAS, 'sigma_min': 0.1, 'sigma_max': 10.0, 'n': 5}
            options = {key: arguments[key] for key in entry.takes}
            assert (
                entry.function(suited(entry.name, denoiser), X, disable=True, **options)
                .isfinite()
                .all()
            )
    assert sampling.loop.torch is torch


def test_trange():
    numbers = []

    def counted(n, disable=None):
        for i in trange(n, disable=disable):
            numbers.append(i)
            yield i

    with mock.patch.object(sampling, 'trange', counted):
        sampling.sample_dpmpp_2m(denoiser, X, SIGMAS, disable=True)
    assert numbers == [0, 1, 2, 3, 4]
    sampling.sample_dpmpp_2m(denoiser, X, SIGMAS, disable=True)
    assert len(numbers) == 5


@pytest.mark.parametrize(
    ('name', 'calls'),
    [
        ('euler', 5),
        ('heun', 9),
        ('dpm_2', 9),
        ('lms', 5),
        ('euler_ancestral', 5),
        ('dpm_2_ancestral', 9),
    ],
)
def test_to_d(monkeypatch, name, calls):
    levels = []

    def to_d(x, sigma, denoised):
        levels.append(sigma)
        return (x - denoised) / sigma * 0.5

    plain = sampling.SAMPLERS[name].function(denoiser, X, SIGMAS, disable=True)
    monkeypatch.setattr(sampling, 'to_d', to_d)
    patched = sampling.SAMPLERS[name].function(denoiser, X, SIGMAS, disable=True)
    assert len(levels) == calls and (patched - plain).abs().max() > 0.1


def test_brownian_tree_noise_sampler(monkeypatch):
    intervals = []

    class Silent:
        def __init__(self, x, sigma_min, sigma_max, seed=None, transform=lambda x: x):
            intervals.append((sigma_min, sigma_max))
            self.x = x

        def __call__(self, sigma, sigma_next):
            return torch.zeros_like(self.x)

    monkeypatch.setattr(sampling, 'BrownianTreeNoiseSampler', Silent)
    for name in ('dpmpp_sde', 'dpmpp_2m_sde', 'dpmpp_3m_sde'):
        first, second = (
            sampling.SAMPLERS[name].function(denoiser, X, SIGMAS, disable=True) for _ in range(2)
        )
        assert torch.equal(first, second)
    assert intervals == [(pytest.approx(0.1), 10.0)] * 6


def test_a_new_name_on_the_face_stays_there():
    sampling.something_new = 1
    assert not hasattr(sampling.loop, 'something_new')
    del sampling.something_new
