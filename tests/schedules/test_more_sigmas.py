"""Schedules between two levels, in flow time and of published models: formulas worked out again,
laws, ends, refusals.
"""

from __future__ import annotations

import inspect
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats

from k_diffusion import generation, sampling, schedules
from k_diffusion.core.incomplete_beta import beta_cdf, beta_quantile

EXACT = ['beta', 'beta57', 'kl_optimal']  # n levels with exact ends, whatever the bounds
CUT = [
    'laplace',
    'flow',
    'linear_quadratic',
    'bong_tangent',
]  # cut to the bounds, equal neighbours dropped
BOUNDED = EXACT + CUT
SD = (0.0292, 14.6146)


def close(sigmas, expected, rtol=2e-7):
    expected = torch.tensor(np.asarray(expected, dtype=np.float64))
    torch.testing.assert_close(sigmas.double(), expected, rtol=rtol, atol=0)


def test_bounded_ones_are_offered_by_name():
    assert set(generation.BETWEEN) == {'karras', 'exponential', 'polyexponential', *BOUNDED}
    for name, function in schedules.SCHEDULES.items():
        assert (
            function.__name__ == f'get_sigmas_{name}'
            and getattr(sampling, function.__name__) is function
        )
        assert 'device' in inspect.signature(function).parameters
    for name in generation.BETWEEN:
        assert list(inspect.signature(schedules.SCHEDULES[name]).parameters)[:3] == [
            'n',
            'sigma_min',
            'sigma_max',
        ]


@pytest.mark.parametrize('name', BOUNDED)
@pytest.mark.parametrize('bounds', [(1e-4, 4096.0), SD, (0.002, 80.0)])
@pytest.mark.parametrize('n', [1, 2, 3, 10, 50])
def test_they_descend_from_sigma_max_to_0(name, bounds, n):
    sigmas = schedules.SCHEDULES[name](n, *bounds)
    assert sigmas.dtype == torch.float32 and (sigmas.diff() < 0).all()
    assert sigmas[0] == torch.tensor(bounds[1]) and sigmas[-1] == 0
    assert len(sigmas) == n + 1 or (name in CUT and bounds[1] < 100 and len(sigmas) > n / 3)
    if n > 1 and name in (*EXACT, 'laplace'):
        assert sigmas[-2] == torch.tensor(bounds[0])


@pytest.mark.parametrize('name', BOUNDED)
def test_tensors_for_bounds_and_a_range_of_one_level(name):
    function = schedules.SCHEDULES[name]
    low, high = torch.tensor([0.125, 5.0])
    assert torch.equal(function(6, low, high), function(6, 0.125, 5.0))
    expected = [0.25] * 6 if name in EXACT else [0.25]
    assert function(6, 0.25, 0.25).tolist() == pytest.approx([*expected, 0.0])


@pytest.mark.parametrize('name', BOUNDED)
@pytest.mark.parametrize('bounds', [(0.0, 1.0), (2.0, 1.0), (math.nan, 1.0), (1.0, math.inf)])
def test_refused_bounds(name, bounds):
    with pytest.raises(ValueError, match='0 < sigma_min <= sigma_max'):
        schedules.SCHEDULES[name](5, *bounds)


@pytest.mark.parametrize(
    'call, complaint',
    [
        (lambda: schedules.get_sigmas_beta(5, *SD, alpha=0.0), 'alpha must be .*; got 0'),
        (lambda: schedules.get_sigmas_beta(5, *SD, beta=math.inf), 'beta must be .*; got inf'),
        (
            lambda: schedules.get_sigmas_kl_optimal(5, *SD, sigma_data=-1.0),
            'sigma_data must be .*; got -1',
        ),
        (lambda: schedules.get_sigmas_laplace(5, *SD, beta=0.0), 'beta must be .*; got 0'),
        (lambda: schedules.get_sigmas_laplace(5, *SD, mu=math.nan), 'mu must be .*; got nan'),
        (
            lambda: schedules.get_sigmas_linear_quadratic(8, *SD, linear_steps=8),
            'linear_steps must be from 1 to 7',
        ),
        (
            lambda: schedules.get_sigmas_linear_quadratic(8, *SD, linear_steps=0),
            'linear_steps must be .*; got 0',
        ),
        (
            lambda: schedules.get_sigmas_linear_quadratic(8, *SD, threshold_noise=0.7),
            'at most 0.666667',
        ),
        (
            lambda: schedules.get_sigmas_linear_quadratic(8, *SD, threshold_noise=0.0),
            'threshold_noise must be .*; got 0',
        ),
        (lambda: schedules.get_sigmas_flow(5, shift=0.0), 'shift must be .*; got 0'),
        (lambda: schedules.get_sigmas_flow(0), 'n must be a positive integer; got 0'),
        (lambda: schedules.get_sigmas_ays(0), 'n must be a positive integer; got 0'),
        (lambda: schedules.get_sigmas_ays(10, 'sdlx'), "did you mean 'sdxl'"),
        (lambda: schedules.flux_shift(0), 'tokens must be .*; got 0'),
        (
            lambda: schedules.flux_shift(100, (256, 0.5), (256, 1.0)),
            'low and high must have different',
        ),
        (lambda: schedules.flow_table(shift=-1.0), 'shift must be .*; got -1'),
        (lambda: schedules.flow_table(n=0), 'n must be a positive integer; got 0'),
        (lambda: beta_quantile(1.1, 0.6, 0.6), 'p must be in'),
    ],
)
def test_other_refusals(call, complaint):
    with pytest.raises(ValueError, match=complaint):
        call()


@pytest.mark.parametrize(
    'a, b', [(0.6, 0.6), (0.5, 0.7), (1.0, 1.0), (1.0, 3.0), (2.0, 5.0), (0.1, 0.2), (20.0, 3.0)]
)
def test_quantiles_of_beta_are_scipys(a, b):
    p = np.concatenate(
        [np.linspace(0, 1, 101), np.logspace(-12, -3, 10), 1 - np.logspace(-9, -3, 7)]
    )
    ours, theirs = np.array([beta_quantile(float(q), a, b) for q in p]), stats.beta.ppf(p, a, b)
    assert np.abs(ours - theirs).max() < 1e-9
    few = (theirs < 0.5) & (theirs > 1e-280)
    assert (np.abs(ours[few] - theirs[few]) / theirs[few]).max() < 1e-9
    x = np.linspace(0, 1, 33)
    assert np.abs([beta_cdf(float(q), a, b) for q in x] - stats.beta.cdf(x, a, b)).max() < 1e-13


@pytest.mark.parametrize('n', [2, 3, 7, 20])
def test_beta(n):
    q = stats.beta.ppf(1 - np.arange(n) / (n - 1), 0.5, 0.7)
    close(schedules.get_sigmas_beta(n, *SD, 0.5, 0.7)[:-1], SD[0] + q * (SD[1] - SD[0]))


def test_beta_of_1_and_1_is_uniform_in_sigma():
    close(schedules.get_sigmas_beta(5, 1.0, 3.0, 1.0, 1.0), [3, 2.5, 2, 1.5, 1, 0])


@pytest.mark.parametrize('n', [2, 3, 7, 20])
def test_kl_optimal(n):
    u = np.arange(n) / (n - 1)
    close(
        schedules.get_sigmas_kl_optimal(n, *SD)[:-1],
        np.tan((1 - u) * math.atan(SD[1]) + u * math.atan(SD[0])),
    )
    scaled = schedules.get_sigmas_kl_optimal(n, SD[0] / 2, SD[1] / 2, sigma_data=0.5)
    close(
        scaled, schedules.get_sigmas_kl_optimal(n, *SD).double() / 2
    )  # halved data, halved levels


def test_kl_optimal_is_the_best_for_euler_on_gaussian_data():
    """The spread of the result over that of the data: below 1, and nearest to it on this
    schedule.
    """

    def remaining_std(sigmas):
        x = torch.full([1], math.hypot(0.5, sigmas[0]), dtype=torch.float64)
        for sigma, sigma_next in pairwise(sigmas[:-1]):
            x = x + (sigma_next - sigma) * sigma / (0.25 + sigma**2) * x
        return x.item() / math.hypot(0.5, sigmas[-2])

    best = schedules.get_sigmas_kl_optimal(8, *SD, sigma_data=0.5).double()
    angles = math.atan(SD[1] / 0.5) - math.atan(SD[0] / 0.5)
    assert remaining_std(best) == pytest.approx(math.cos(angles / 7) ** 7, rel=1e-6)
    for i in range(1, 7):
        for factor in (0.97, 1.03):
            other = best.clone()
            other[i] *= factor
            assert remaining_std(other) < remaining_std(best) < 1


def test_laplace():
    inner = schedules.get_sigmas_laplace(9, 1e-3, 1e3, mu=0.3, beta=0.4)[1:-2]
    expected = stats.laplace.ppf(1 - np.arange(1, 8) / 8, 0.3, 0.4)
    close(inner, np.exp(expected), rtol=3e-5)  # the 1e-5 that keeps the logarithm finite
    assert inner[3].item() == pytest.approx(math.exp(0.3), rel=1e-5)
    p = 1 / 8
    assert inner[0].item() == pytest.approx(math.exp(0.3 - 0.4 * math.log(2 * p + 1e-5)), rel=2e-7)
    assert (
        schedules.get_sigmas_laplace(40, 0.5, 2.0).shape[0] < 35
    )  # equal neighbours at the cut are dropped


def test_flow_is_uniform_in_flow_time():
    sigmas = schedules.get_sigmas_flow(8)
    assert sigmas[0] == 4096
    close(schedules.sigma_to_flow_time(sigmas.double())[1:], 1 - np.arange(1, 9) / 8, rtol=1e-7)
    close(schedules.get_sigmas_flow(8, shift=3.0)[1:], sigmas[1:].double() * 3)
    t = 0.5
    assert schedules.sigma_to_flow_time(schedules.get_sigmas_flow(2, shift=3.0))[
        1
    ].item() == pytest.approx(3 * t / (1 + 2 * t))
    assert schedules.get_sigmas_flow(10, sigma_max=4.0, sigma_min=0.2).tolist() == pytest.approx(
        [4, 7 / 3, 1.5, 1, 2 / 3, 3 / 7, 0.25, 0.2, 0]
    )


@pytest.mark.parametrize('shift', [1.0, 3.0, 3.16])
@pytest.mark.parametrize('n', [1, 4, 28])
def test_flow_is_diffusers_flow_matching(shift, n):
    pytest.importorskip('diffusers')
    from diffusers import FlowMatchEulerDiscreteScheduler

    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(sigmas=np.linspace(1, 1 / n, n))
    ours = schedules.sigma_to_flow_time(schedules.get_sigmas_flow(n, shift=shift, sigma_max=1e9))
    torch.testing.assert_close(ours, theirs.sigmas.float(), rtol=1e-6, atol=1e-6)


def test_flux_shift():
    pytest.importorskip('diffusers')
    from diffusers import FlowMatchEulerDiscreteScheduler

    assert schedules.flux_shift(256) == pytest.approx(math.exp(0.5)) and schedules.flux_shift(
        4096
    ) == pytest.approx(math.exp(1.15))
    mu = 0.5 + 0.65 * (1024 - 256) / 3840
    theirs = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    theirs.set_timesteps(sigmas=np.linspace(1, 0.1, 10), mu=mu)
    ours = schedules.get_sigmas_flow(10, shift=schedules.flux_shift(1024), sigma_max=1e9)
    torch.testing.assert_close(
        schedules.sigma_to_flow_time(ours), theirs.sigmas.float(), rtol=1e-6, atol=1e-6
    )


def test_flow_table():
    table = schedules.flow_table(3.0, n=4)
    assert table.tolist() == pytest.approx([1, 3, 9, 4096])
    assert schedules.flow_table().shape == (1000,)


@pytest.mark.parametrize(
    'n, linear, threshold',
    [(2, None, 0.025), (5, None, 0.025), (20, None, 0.025), (9, 6, 0.1), (9, 2, 0.3)],
)
def test_linear_quadratic(n, linear, threshold):
    sigmas = schedules.get_sigmas_linear_quadratic(n, 1e-9, 1e9, threshold, linear).double()
    done, steps = 1 - schedules.sigma_to_flow_time(sigmas), linear or n // 2
    assert len(done) == n + 1 and done[0] < 1e-8 and done[-1] == 1
    close(done[1 : steps + 1], threshold * np.arange(1, steps + 1) / steps, rtol=1e-6)
    # A parabola from there on, which leaves with the slope of the line: d_i = slope i + c i^2.
    i = torch.arange(1, n - steps + 1).double()
    curve = (done[steps + 1 :] - done[steps] - threshold / steps * i) / i**2
    torch.testing.assert_close(curve, curve[-1:].expand_as(curve), rtol=1e-3, atol=1e-6)


def test_linear_quadratic_by_hand():
    """n = 4: two steps of 1/80, then t = 0.975 - i / 80 - c i^2 with c = 0.95 / 4."""
    sigmas = schedules.get_sigmas_linear_quadratic(4, 1e-4, 4096.0)
    close(schedules.sigma_to_flow_time(sigmas.double())[1:], [0.9875, 0.975, 0.725, 0], rtol=1e-7)
    assert schedules.get_sigmas_linear_quadratic(1, 1e-4, 4096.0).tolist() == [4096, 0]


def test_ays_as_published():
    published = {
        'sd15': [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0],
        'sdxl': [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0],
        'svd': [700, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0],
    }
    assert published.keys() == schedules.AYS_LEVELS.keys()
    for model, levels in published.items():
        assert torch.equal(schedules.get_sigmas_ays(10, model), torch.tensor(levels))
    assert torch.equal(schedules.get_sigmas_ays(10), torch.tensor(published['sd15']))


@pytest.mark.parametrize('model, last', [('sd15', 0.029), ('sdxl', 0.029), ('svd', 0.002)])
@pytest.mark.parametrize('n', [1, 2, 5, 7, 20, 33])
def test_ays_between_the_published_levels(model, last, n):
    published_levels = [*schedules.get_sigmas_ays(10, model).double().tolist()[:-1], last]
    expected = np.exp(
        np.interp(np.linspace(0, 10, n + 1), np.arange(11), np.log(published_levels))
    )[:-1]
    sigmas = schedules.get_sigmas_ays(n, model)
    assert sigmas.shape == (n + 1,) and sigmas[-1] == 0 and (sigmas.diff() < 0).all()
    close(sigmas[:-1], expected)


def test_ays_is_diffusers():
    pytest.importorskip('diffusers')
    from diffusers.schedulers import AysSchedules

    for model, name in {
        'sd15': 'StableDiffusion',
        'sdxl': 'StableDiffusionXL',
        'svd': 'StableDiffusionVideo',
    }.items():
        assert torch.equal(
            schedules.get_sigmas_ays(10, model), torch.tensor(AysSchedules[f'{name}Sigmas'])
        )


def test_beta_is_diffusers():
    pytest.importorskip('diffusers')
    from diffusers import EulerDiscreteScheduler

    theirs = EulerDiscreteScheduler(
        beta_schedule='scaled_linear', beta_start=0.00085, beta_end=0.012, use_beta_sigmas=True
    )
    theirs.set_timesteps(12)
    low, high = theirs.sigmas[-2], theirs.sigmas[0]
    torch.testing.assert_close(
        schedules.get_sigmas_beta(12, low, high), theirs.sigmas.float(), rtol=1e-5, atol=1e-6
    )
