"""Schedules by the names of image programs, lists found by a search for one model, and shifts
that depend on the number of tokens.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

import k_diffusion as K
from k_diffusion import schedules

SD = (0.0292, 14.6146)


def close(sigmas, expected, rtol=3e-7):
    torch.testing.assert_close(
        sigmas.double(), torch.tensor(np.asarray(expected, dtype=np.float64)), rtol=rtol, atol=0
    )


@pytest.mark.parametrize('n', [1, 4, 20])
def test_beta57(n):
    if n > 1:
        quantiles = stats.beta.ppf(1 - np.arange(n) / (n - 1), 0.5, 0.7)
        close(schedules.get_sigmas_beta57(n, *SD)[:-1], SD[0] + quantiles * (SD[1] - SD[0]))
    table = torch.linspace(0.03, 14.6, 1000, dtype=torch.float64)
    index = np.rint(stats.beta.ppf(1 - np.arange(n) / n, 0.5, 0.7) * 999).astype(int)
    close(schedules.get_sigmas_beta57_table(n, table)[:-1], table[index].numpy())
    assert torch.equal(
        schedules.DISCRETE_SCHEDULES['beta57'](n, table),
        schedules.get_sigmas_beta57_table(n, table),
    )


def bong(n):
    """Flow times as arc tangents that are turned and scaled to their ends one place after
    another.
    """

    def stage(length, pivot, slope, start, end):
        values = [(2 / math.pi * math.atan(-slope * (x - pivot)) + 1) / 2 for x in range(length)]
        return [
            end + (start - end) * (value - values[-1]) / (values[0] - values[-1])
            for value in values
        ]

    places = n + 2
    pivot = int(places * 0.6)
    slope = 0.2 / (places / 40)
    return stage(pivot, pivot, slope, 1.0, 0.5)[:-1] + stage(places - pivot, 0, slope, 0.5, 0.0)


@pytest.mark.parametrize('n', [2, 3, 8, 20, 50])
def test_bong_tangent(n):
    times = schedules.sigma_to_flow_time(schedules.get_sigmas_bong_tangent(n, 1e-9, 1e9).double())
    torch.testing.assert_close(
        times, torch.tensor(bong(n), dtype=torch.float64), rtol=1e-6, atol=1e-8
    )
    assert len(times) == n + 1 and 0.5 in times.tolist()


def test_bong_tangent_by_hand():
    """n = 3: five places, one of the first curve's three is at 1/2, and the second falls from
    there by 1 / atan(1.6) parts.
    """
    first = (math.atan(8 / 5 * 2) - math.atan(8 / 5)) / (math.atan(8 / 5 * 3) - math.atan(8 / 5))
    times = schedules.sigma_to_flow_time(schedules.get_sigmas_bong_tangent(3, 1e-9, 1e9).double())
    assert times.tolist() == pytest.approx([1, 0.5 + 0.5 * first, 0.5, 0], abs=1e-7)
    assert schedules.get_sigmas_bong_tangent(1, 1e-4, 4096.0).tolist() == [4096, 0]


@pytest.mark.parametrize(
    'name, model, levels',
    [
        (
            'ays_11',
            'sd15',
            [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029],
        ),
        (
            'ays_11',
            'sdxl',
            [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029],
        ),
        (
            'ays_11',
            'svd',
            [700, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002],
        ),
        ('ays_32', 'sd15', None),
        ('ays_32', 'sdxl', None),
    ],
)
def test_align_your_steps_with_its_last_level(name, model, levels):
    function, count = schedules.SCHEDULES[name], int(name[-2:])
    full = function(count, model)
    assert len(full) == count + 1 and full[-1] == 0 and (full.diff() < 0).all()
    if levels is not None:
        close(full[:-1], levels)
    published_levels = np.log(full[:-1].double().numpy())
    for n in 2, 7, 50:
        expected = np.exp(
            np.interp(np.linspace(0, count - 1, n), np.arange(count), published_levels)
        )
        close(function(n, model)[:-1], expected)
    assert function(1, model).tolist() == pytest.approx([full[0].item(), 0])


def test_the_list_of_32_is_near_that_of_11():
    """Both solve the same problem: at equal shares of the list the levels of 32 steps are within
    a tenth (in log sigma, of its range).
    """
    for model in 'sd15', 'sdxl':
        long, short = (
            np.log(schedules.SCHEDULES[name](33, model)[:-1].numpy())
            for name in ('ays_32', 'ays_11')
        )
        assert np.abs(long - short)[:-3].max() < 0.1 * math.log(14.6 / 0.03)


def test_optimal_steps_as_published():
    flux = [0.9968, 0.9886, 0.9819, 0.975, 0.966, 0.9471, 0.9158, 0.8287, 0.5512, 0.2808, 0]
    times = schedules.sigma_to_flow_time(schedules.get_sigmas_optimal_steps(10).double())
    assert times.tolist() == pytest.approx(flux, rel=1e-6)
    assert schedules.get_sigmas_optimal_steps(20, 'wan')[:2].tolist() == pytest.approx(
        [4096, 0.997 / 0.003]
    )
    assert [len(schedules.OPTIMAL_TIMES[model]) - 1 for model in ('flux', 'wan', 'chroma')] == [
        10,
        20,
        40,
    ]
    for n in 3, 7, 30:
        expected = np.exp(
            np.interp(np.linspace(0, 10, n + 1), np.arange(11), np.log([*flux[:-1], 0.001]))
        )[:-1]
        times = schedules.sigma_to_flow_time(schedules.get_sigmas_optimal_steps(n).double())[:-1]
        assert times.tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    with pytest.raises(ValueError, match="unknown model 'fluxx', did you mean 'flux'"):
        schedules.get_sigmas_optimal_steps(10, 'fluxx')


def test_gits():
    assert schedules.get_sigmas_gits(2).tolist() == pytest.approx([14.61464119, 0.803307, 0])
    for n in range(1, 21):
        sigmas = schedules.get_sigmas_gits(n)
        assert (
            len(sigmas) == n + 1
            and (sigmas.diff() < 0).all()
            and sigmas[0].item() == pytest.approx(14.61464119)
        )
    published_levels = np.log([*schedules.get_sigmas_gits(20).double().tolist()[:-1], 0.02916753])
    close(
        schedules.get_sigmas_gits(33)[:-1],
        np.exp(np.interp(np.linspace(0, 20, 34), np.arange(21), published_levels))[:-1],
    )
    grid = {
        level for levels in schedules.GITS_LEVELS for level in levels
    }  # its lists choose among 61 levels of one teacher
    assert len(grid) <= 61 and all(
        len(levels) == n for n, levels in enumerate(schedules.GITS_LEVELS, 3)
    )


@pytest.mark.parametrize(
    'name', ['ays_11', 'ays_32', 'optimal_steps', 'gits', 'bong_tangent', 'beta57']
)
def test_a_name_is_all_that_sample_needs(name):
    images = K.sample(
        lambda x, sigma: x / (1 + sigma[:, None, None, None] ** 2),
        [2, 1, 4, 4],
        6,
        'euler',
        name,
        seeds=0,
    )
    assert images.isfinite().all() and 0.1 < images.std() < 1.2
    for n in 0, 2.5:
        with pytest.raises(ValueError, match='n must be a positive integer'):
            schedules.SCHEDULES[name](n, *(SD if name in K.generation.BETWEEN else ()))


@pytest.mark.parametrize('kind', ['exponential', 'linear'])
@pytest.mark.parametrize('tokens', [64, 256, 1024, 4096, 9216])
@pytest.mark.parametrize('points', [((256, 0.5), (4096, 1.15)), ((1024, 0.95), (4096, 2.05))])
def test_the_shift_by_tokens_is_diffusers(kind, tokens, points):
    pytest.importorskip('diffusers')
    from diffusers import FlowMatchEulerDiscreteScheduler

    pytest.importorskip('transformers')
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    (low, base_shift), (high, max_shift) = points
    theirs = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
    theirs.set_timesteps(
        sigmas=np.linspace(1, 1 / 12, 12),
        mu=calculate_shift(tokens, low, high, base_shift, max_shift),
    )
    ours = schedules.get_sigmas_flow(
        12, shift=schedules.flux_shift(tokens, *points, kind), sigma_max=1e9
    )
    torch.testing.assert_close(
        schedules.sigma_to_flow_time(ours), theirs.sigmas.float(), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize('tokens', [256, 1024, 4096, 4300, 4301, 8192])
@pytest.mark.parametrize('steps', [4, 28, 50, 200])
def test_the_shift_of_flux2_is_diffusers(tokens, steps):
    pytest.importorskip('diffusers')
    pytest.importorskip('transformers')
    from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

    assert schedules.flux2_shift(tokens, steps) == pytest.approx(
        math.exp(compute_empirical_mu(tokens, steps)), rel=1e-9
    )


def test_refused_shifts():
    for call, complaint in [
        (lambda: schedules.flux_shift(100, kind='cubic'), "unknown kind 'cubic'"),
        (lambda: schedules.flux_shift('many'), "tokens must be .*; got 'many'"),
        (lambda: schedules.flux_shift(100, low=3), r'low must be a point \(tokens, mu\)'),
        (lambda: schedules.flux_shift(1, (256, 0.1), (4096, 2.0), 'linear'), 'mu must be > 0'),
        (lambda: schedules.flux2_shift(0, 20), 'tokens must be .*; got 0'),
        (lambda: schedules.flux2_shift(256, 0), 'n must be a positive integer; got 0'),
    ]:
        with pytest.raises(ValueError, match=complaint):
            call()


def test_a_flow_denoiser_with_a_shift_by_tokens():
    denoiser = K.external.FlowDenoiser(lambda x, t: x, shift=schedules.flux_shift)
    expected = schedules.get_sigmas_flow(
        7, sigma_max=1e4, shift=math.exp(0.5 + 0.65 * (1024 - 256) / 3840)
    )
    assert torch.equal(denoiser.get_sigmas(7, tokens=1024), expected)
    assert torch.equal(
        denoiser.get_sigmas(7, shift=3.0), schedules.get_sigmas_flow(7, sigma_max=1e4, shift=3.0)
    )
    with pytest.raises(ValueError, match='tokens must be the number of tokens of the image'):
        denoiser.get_sigmas(7)
    plain = K.external.FlowDenoiser(lambda x, t: x, shift=3.0)
    with pytest.raises(
        ValueError, match='tokens must be omitted where the shift is a number, 3; got 1024'
    ):
        plain.get_sigmas(7, tokens=1024)
