"""Multistep samplers on schedules whose last step is a leap to a small level in place of 0, as
image programs have it.
"""

import math

import pytest
import torch

import k_diffusion as K
from k_diffusion.sampling.samplers.exponential_multistep import ends_in_leap

HIGH, LOW = 80.0, 0.05


def denoise(x, sigma):
    """The exact denoiser of unit Gaussian data, whose flow is x sqrt((1 + sigma'^2) / (1 +
    sigma^2)).
    """
    return x / (1 + sigma[:, None].double() ** 2)


def error(name, end, **options):
    """The rms error, in standard deviations of the data, over the last step from LOW of a
    schedule even in log sigma.
    """
    sigmas = [HIGH * (LOW / HIGH) ** (i / 11) for i in range(12)] + [end]
    x = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None] * HIGH
    end_of_run = getattr(K.sampling, f'sample_{name}')(denoise, x, sigmas, disable=True, **options)
    exact = x * math.sqrt((1 + end**2) / (1 + HIGH**2))
    return ((end_of_run - exact).square().mean() / exact.square().mean()).sqrt().item()


@pytest.mark.parametrize('name', ['uni_pc', 'uni_pc_bh2', 'dpmpp_3m'])
def test_lower_order_at_a_leap_to_a_small_level(name):
    at_zero = error(name, 0.0)
    assert error(name, 0.001) < 1.2 * at_zero + 0.01
    assert error(name, 0.001, lower_order_final=False) > 4 * error(name, 0.001)


@pytest.mark.parametrize('name', ['uni_pc', 'dpmpp_3m'])
def test_keep_the_order_where_the_last_step_is_like_the_others(name):
    assert error(name, 0.03) == error(name, 0.03, lower_order_final=False)


@pytest.mark.parametrize(
    'sigmas, leap',
    [
        ([10.0, 1.0, 0.0], True),
        ([10.0, 1.0, 0.1, 0.001], False),
        ([10.0, 1.0, 0.1, 0.0009], True),
        ([10.0, 1.0, 0.1, 0.1, 0.0009, 0.0009], True),
        ([10.0, 1.0], False),
        ([10.0], False),
        ([0.0, 0.0], True),
    ],
)
def test_what_a_leap_is(sigmas, leap):
    assert ends_in_leap(sigmas) is leap


@pytest.mark.parametrize('name', ['uni_pc', 'uni_pc_bh2'])
def test_unipc_can_stop_at_a_level_in_place_of_0(name):
    """As with a schedule that ends there; but the order falls as for a step to 0."""
    sigmas, x = [1.0, 0.4, 0.2, 0.1, 0.0], torch.ones(1, 1, dtype=torch.float64)
    run = getattr(K.sampling, f'sample_{name}')
    alike = {'order': 1, 'corrector': False, 'disable': True}  # exponential Euler steps
    at_end = run(denoise, x, [*sigmas[:-1], 0.05], **alike)
    assert run(denoise, x, sigmas, end=0.05, **alike).equal(at_end)
    assert run(denoise, x, [*sigmas[:-1], 0.05], end=0.01, **alike).equal(at_end)
    falls = run(denoise, x, sigmas, end=0.05, disable=True)
    assert not falls.equal(run(denoise, x, [*sigmas[:-1], 0.05], disable=True))
    for end in (0.1, -1.0, 'low'):
        with pytest.raises(ValueError, match='end must be'):
            run(denoise, x, sigmas, end=end, disable=True)


def test_the_noise_of_sa_solver_between_two_levels():
    tau = K.sampling.tau_between([8.0, 4.0, 2.0, 1.0, 0.0], 4.0, 2.0, 0.5)
    assert [tau(sigma) for sigma in (8.0, 4.0, 2.0, 1.0)] == [0.5, 0.5, 0.0, 0.0]
