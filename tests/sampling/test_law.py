"""The variance that stochastic samplers give on Gaussian data.

The end is an affine function of the start and of the draws, so its variance is a sum.
"""

import functools
import math

import pytest
import torch
from sampler_cases import with_noise
from stable_ids import stable_id

from k_diffusion import sampling

HIGH, LOW = 20.0, 0.05
VARIANCE = torch.tensor([2.0, 0.5, 0.15], dtype=torch.float64) ** 2
COUNTS = [32, 64, 128, 256]


def model(x, sigma):
    """The exact denoiser of the Gaussian."""
    return VARIANCE / (VARIANCE + sigma[:, None] ** 2) * x


def schedule(n):
    return torch.linspace(math.log(HIGH), math.log(LOW), n + 1, dtype=torch.float64).exp()


class UnitDraws:
    """A noise sampler whose k-th draw is 1 in item k + 1 and 0 elsewhere: the batch then shows
    the weight of every draw.
    """

    def __init__(self, items):
        self.items, self.draws = items, 0

    def __call__(self, sigma, sigma_next):
        self.draws += 1
        noise = torch.zeros(self.items, 3, dtype=torch.float64)
        if self.draws < self.items:
            noise[self.draws] = 1
        return noise


def variance_at_end(name, n, **options):
    """The variance at LOW from independent draws and a start with the exact marginal variance,
    without sampling.
    """
    run = functools.partial(
        sampling.SAMPLERS[name].function, model, sigmas=schedule(n), disable=True, **options
    )
    counter = UnitDraws(1)
    run(torch.zeros(1, 3, dtype=torch.float64), noise_sampler=counter)
    x = torch.zeros(counter.draws + 1, 3, dtype=torch.float64)
    x[0] = 1
    weights = run(x, noise_sampler=UnitDraws(len(x)))
    return (VARIANCE + HIGH**2) * weights[0] ** 2 + (weights[1:] ** 2).sum(0)


def error(name, n, **options):
    """The worst relative error of the variance."""
    exact = VARIANCE + LOW**2
    return ((variance_at_end(name, n, **options) - exact) / exact).abs().max().item()


#: Stochastic samplers with independent draws; dpmpp_sde needs a path, lcm and tcd a distilled
#: model, the CFG++ one a pair.
LAWFUL = [
    name
    for name, entry in sampling.SAMPLERS.items()
    if (entry.stochastic or entry.noise == 'independent' or name == 'ddim')
    and name not in ('dpmpp_sde', 'lcm', 'tcd')
    and not entry.needs_pair
]


@pytest.mark.parametrize('name', LAWFUL)
def test_variance_at_200_steps(name):
    order = sampling.SAMPLERS[name].order
    assert error(name, 200, **with_noise(name)) < (0.02 if order > 1 else 0.06)
    assert error(name, 400, **with_noise(name)) < (0.01 if order > 1 else 0.03)


@pytest.mark.parametrize(
    ('name', 'options', 'order'),
    [
        ('euler_ancestral', {}, 0.95),
        ('ddpm', {}, 0.95),
        ('ddim', {'eta': 0.5}, 0.96),
        ('exp_ab', {'order': 1, 'eta': 0.25}, 0.97),
        ('dpmpp_2m_sde', {'solver_type': 'heun'}, 2.03),
        ('dpmpp_2m_sde', {'eta': 0.25}, 1.99),
        ('exp_ab', {'order': 2, 'eta': 0.25}, 2.02),
        ('exp_ab', {'order': 3, 'eta': 1.0}, 2.42),
        ('exp_ab', {'order': 3, 'eta': 0.25}, 2.68),
        ('dpmpp_3m_sde', {}, 2.11),
        ('sa_solver', {'interval': (0.0, 1.0)}, 2.26),
        ('sa_solver_pece', {'interval': (0.0, 1.0)}, 2.30),
        ('sa_solver', {'tau': lambda sigma: float(0.3 < sigma < 3)}, 2.12),
        ('seeds_2', {}, 1.99),
        ('seeds_2', {'r': 1.0}, 1.93),
        ('seeds_3', {}, 1.77),
        ('dpm_2_ancestral', {}, 2.03),
        ('dpmpp_2s_ancestral', {}, 1.97),
        ('res_multistep_ancestral', {}, 2.03),
        ('seeds_2', {'solver_type': 'phi_1'}, 1.96),
        ('exp_heun_2_x0_sde', {}, 1.93),
        ('res_multistep_ancestral', {'eta': 0.25}, 2.01),
        ('euler_ancestral', {'down': 'flow'}, 0.94),
        ('dpm_2_ancestral', {'down': 'flow'}, 2.01),
        ('dpmpp_2s_ancestral', {'down': 'flow', 'eta': 0.5}, 1.95),
        ('er_sde', {'max_stage': 1}, 0.98),
        ('er_sde', {'max_stage': 2}, 2.03),
        ('er_sde', {}, 2.09),
        ('er_sde', {'exact': True}, 2.8),
        ('er_sde', {'noise_scaler': lambda sigma: sigma**2}, 2.14),
        ('restart', {'intervals': ((0.3, 3.0),)}, 2.02),
    ],
    ids=stable_id,
)
def test_order_of_the_variance(name, options, order):
    n = torch.tensor(COUNTS, dtype=torch.float64).log()
    errors = torch.tensor(
        [error(name, count, **options) for count in COUNTS], dtype=torch.float64
    ).log()
    n = n - n.mean()
    assert -(n * errors).sum().item() / (n * n).sum().item() == pytest.approx(order, abs=0.2)


def test_dpmpp_sde_on_a_path():
    """Its two draws of a step overlap, so the variance is right with a Brownian path (the
    default) alone.
    """
    sigmas = sampling.get_sigmas_exponential(200, LOW, HIGH)[:-1]
    x = torch.randn(1, 3, 40_000) * (VARIANCE[:, None] + HIGH**2).sqrt().float()
    exact = (VARIANCE + LOW**2).float()
    denoise = lambda x, sigma: (VARIANCE[:, None] / (VARIANCE[:, None] + sigma[0] ** 2)).float() * x
    out = sampling.sample_dpmpp_sde(denoise, x, sigmas, disable=True)
    torch.testing.assert_close(out[0].var(1), exact, rtol=0.03, atol=0)


def test_lcm_loses_variance_with_a_model_that_is_not_distilled():
    assert 0.4 < error('lcm', 200) < 0.6
