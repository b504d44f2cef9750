"""Transforms of any schedule."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from k_diffusion import generation, sampling, schedules
from k_diffusion.schedules import (
    cap_sigmas,
    discard_penultimate_sigma,
    final_denoise,
    get_sigmas_flow,
    get_sigmas_karras,
    quantize_sigmas,
    shift_sigmas,
    sigmas_for_strength,
)

KARRAS = get_sigmas_karras(10, 0.03, 14.6)
TABLE = torch.linspace(-3.5, 2.68, 200, dtype=torch.float64).exp()
ALL = {
    'shift': partial(shift_sigmas, shift=3.0),
    'cap': partial(cap_sigmas, sigma_max=5.0),
    'quantize': partial(quantize_sigmas, table=TABLE),
    'discard': partial(discard_penultimate_sigma),
    'final': partial(final_denoise),
    'strength': partial(sigmas_for_strength, strength=0.6),
}


@pytest.mark.parametrize('name', ALL)
def test_a_schedule_in_and_a_schedule_out(name):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        out = ALL[name](KARRAS.to(dtype))
        assert out.dtype == dtype and out[-1] == 0 and (out.diff() < 0).all() and len(out) > 5
    torch.testing.assert_close(ALL[name](KARRAS.tolist()), ALL[name](KARRAS))
    assert getattr(sampling, ALL[name].func.__name__) is ALL[name].func
    for wrong in ([1.0, 2.0, 0.0], [1.0, -1.0], [[2.0, 1.0]], [math.nan, 0.0]):
        with pytest.raises(ValueError, match='must be one list of descending'):
            ALL[name](wrong)


def test_a_shift_is_a_translation_of_log_sigma():
    moved = shift_sigmas(KARRAS.double(), 3.0)[:-1].log() - KARRAS.double()[:-1].log()
    torch.testing.assert_close(moved, torch.full_like(moved, math.log(3)))
    torch.testing.assert_close(
        shift_sigmas(shift_sigmas(KARRAS, 3.0), 2.0), shift_sigmas(KARRAS, 6.0)
    )
    assert torch.equal(shift_sigmas(KARRAS, 1.0), KARRAS)
    # In flow time it is t' = s t / (1 + (s - 1) t).
    t = schedules.sigma_to_flow_time(KARRAS.double())
    torch.testing.assert_close(
        schedules.sigma_to_flow_time(shift_sigmas(KARRAS.double(), 3.0)), 3 * t / (1 + 2 * t)
    )
    torch.testing.assert_close(
        shift_sigmas(get_sigmas_flow(8), 3.0)[1:], get_sigmas_flow(8, shift=3.0)[1:]
    )
    with pytest.raises(ValueError, match='shift must be .*; got 0'):
        shift_sigmas(KARRAS, 0.0)


def test_cap():
    assert cap_sigmas([math.inf, 9000.0, 30.0, 1.0, 0.0]).tolist() == [4096, 30, 1, 0]
    assert cap_sigmas([math.inf, 9.0, 1.0, 0.0], 5.0).tolist() == [5, 1, 0]
    assert torch.equal(cap_sigmas(KARRAS), KARRAS) and torch.equal(
        cap_sigmas(cap_sigmas(KARRAS, 2.0), 2.0), cap_sigmas(KARRAS, 2.0)
    )
    with pytest.raises(ValueError, match='sigma_max must be .*; got inf'):
        cap_sigmas(KARRAS, math.inf)


def test_quantized_levels_are_the_nearest_of_the_table():
    rounded = quantize_sigmas(KARRAS.double(), TABLE)
    assert torch.isin(rounded[:-1], TABLE).all() and torch.equal(
        quantize_sigmas(rounded, TABLE), rounded
    )
    distance = (KARRAS.double()[:-1, None].log() - TABLE.log()).abs()
    assert len(rounded) == len(KARRAS) and torch.equal(rounded[:-1], TABLE[distance.argmin(1)])


def test_quantizing_drops_what_becomes_equal_and_keeps_the_end():
    table = [0.1, 1.0, 10.0]
    assert quantize_sigmas(
        [50.0, 8.0, 4.0, 3.0, 2.0, 0.5, 0.01, 0.0], table
    ).tolist() == pytest.approx([10, 1, 0.1, 0])
    assert quantize_sigmas([8.0, 2.0], table).tolist() == [10, 1]  # no zero, none added
    assert quantize_sigmas([0.0], table).tolist() == [0]
    assert torch.equal(quantize_sigmas(TABLE.flip(0), TABLE), TABLE.flip(0))


def test_discard_penultimate():
    assert torch.equal(discard_penultimate_sigma(KARRAS), torch.cat([KARRAS[:9], KARRAS[10:]]))
    with pytest.raises(ValueError, match='at least 2 steps, .*; got 1'):
        discard_penultimate_sigma([1.0, 0.0])


def test_final_denoise():
    assert final_denoise(KARRAS, False).tolist() == KARRAS[:-1].tolist()
    assert torch.equal(final_denoise(final_denoise(KARRAS, False)), KARRAS) and torch.equal(
        final_denoise(KARRAS), KARRAS
    )


@pytest.mark.parametrize('strength, steps', [(1.0, 10), (0.6, 6), (0.25, 2), (0.01, 1)])
def test_strength(strength, steps):
    assert torch.equal(sigmas_for_strength(KARRAS, strength), KARRAS[-steps - 1 :])


def test_strength_refusals():
    for strength in (0.0, 1.1, math.nan):
        with pytest.raises(ValueError, match='strength must be'):
            sigmas_for_strength(KARRAS, strength)
    with pytest.raises(ValueError, match='at least two levels; got one'):
        sigmas_for_strength([1.0], 0.5)


@pytest.mark.parametrize('name', schedules.SCHEDULES)
@pytest.mark.parametrize('n', [1, 2, 40])
def test_samplers_walk_every_schedule(name, n):
    """Gaussian data of standard deviation 1/2, whose denoiser is linear: the noise of all levels
    goes, what is left is data.
    """
    function = schedules.SCHEDULES[name]
    sigmas = function(n, 0.03, 14.6) if name in generation.BETWEEN else function(n)
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)) * sigmas[0]
    out = sampling.sample_dpmpp_2m(
        lambda x, sigma: x * 0.25 / (0.25 + sigma[:, None] ** 2), x, sigmas, disable=True
    )
    assert out.isfinite().all() and 0 < out.std() < 0.7
    if n == 40:
        coarse = name == 'optimal_steps'  # at small levels
        assert out.std().item() == pytest.approx(0.5, rel=0.25 if coarse else 0.2)
