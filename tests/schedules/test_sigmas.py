"""The schedules against the original's, their ends and what they refuse."""

import math

import pytest
import torch

from k_diffusion import generation, sampling, schedules

CASES = {
    'karras': ('get_sigmas_karras', {'sigma_min': 0.0292, 'sigma_max': 14.6146}),
    'karras_rho3': ('get_sigmas_karras', {'sigma_min': 0.002, 'sigma_max': 80.0, 'rho': 3.0}),
    'exponential': ('get_sigmas_exponential', {'sigma_min': 0.0292, 'sigma_max': 14.6146}),
    'polyexponential_rho2': (
        'get_sigmas_polyexponential',
        {'sigma_min': 0.03, 'sigma_max': 500.0, 'rho': 2.0},
    ),
    'vp': ('get_sigmas_vp', {}),
}
BOUNDED = ['karras', 'exponential', 'polyexponential']


@pytest.mark.parametrize('n', [1, 2, 7, 20])
@pytest.mark.parametrize('case', CASES)
def test_golden(golden, case, n):
    name, options = CASES[case]
    out, expected = getattr(schedules, name)(n, **options), golden('schedules')[f'{case}_{n}']
    assert out.dtype == expected.dtype and (out - expected).abs().max() < 1e-6 * expected.max()
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('name', BOUNDED)
@pytest.mark.parametrize('bounds', [(0.002, 80.0), (0.0292, 14.6146), (0.3, 0.3)])
def test_exact_ends(name, bounds):
    for n in (2, 3, 50):
        sigmas = schedules.SCHEDULES[name](n, *bounds)
        assert sigmas.dtype == torch.float32 and sigmas.shape == (n + 1,)
        ends = torch.tensor([bounds[1], bounds[0], 0.0])
        assert torch.equal(sigmas[[0, -2, -1]], ends) and (sigmas.diff() <= 0).all()


@pytest.mark.parametrize('name', BOUNDED)
def test_bounds_may_be_tensors(name):
    table = torch.tensor([0.1, 5.0])
    assert torch.equal(
        schedules.SCHEDULES[name](6, table[0], table[1]),
        schedules.SCHEDULES[name](6, table[0].item(), 5.0),
    )


def test_formulas():
    assert schedules.get_sigmas_exponential(3, 0.1, 10.0)[1].item() == pytest.approx(1)
    assert schedules.get_sigmas_karras(3, 1.0, 16.0, rho=2.0)[1].item() == pytest.approx(2.5**2)
    assert schedules.get_sigmas_polyexponential(3, 1.0, math.e**4, rho=2.0)[
        1
    ].item() == pytest.approx(math.e)


@pytest.mark.parametrize('name', BOUNDED)
@pytest.mark.parametrize(
    'bounds', [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0), (math.nan, 1.0), (1.0, math.inf)]
)
def test_refused_bounds(name, bounds):
    with pytest.raises(ValueError, match='0 < sigma_min <= sigma_max'):
        schedules.SCHEDULES[name](5, *bounds)


def test_other_refusals():
    for name in schedules.SCHEDULES:
        options = {'sigma_min': 0.1, 'sigma_max': 1.0} if name in generation.BETWEEN else {}
        with pytest.raises(ValueError, match='n must be a positive integer; got 0'):
            schedules.SCHEDULES[name](0, **options)
    for name in ('karras', 'polyexponential'):
        with pytest.raises(ValueError, match='rho must be .*; got 0'):
            schedules.SCHEDULES[name](5, 0.1, 1.0, rho=0)
    with pytest.raises(ValueError, match=r'eps_s must be in \(0, 1\], .*; got 0'):
        schedules.get_sigmas_vp(5, eps_s=0)
    for rates in ((-1.0,), (19.9, -1.0), (3000.0,), (0.0, 0.0), (-1.0, 0.6)):
        with pytest.raises(ValueError, match=f'beta_d and beta_min must be .*; got {rates[0]} and'):
            schedules.get_sigmas_vp(3, *rates)
    with pytest.raises(ValueError, match=r'n must be a positive integer; got 2\.5'):
        schedules.get_sigmas_karras(2.5, 0.1, 1.0)
    with pytest.raises(ValueError, match="did you mean 'karras'"):
        schedules.SCHEDULES['karas']


def test_append_zero():
    x = torch.tensor([2.0, 1.0], dtype=torch.float64)
    assert torch.equal(schedules.append_zero(x), torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64))
    assert sampling.append_zero is schedules.append_zero


def test_between_follows_the_registry():
    def get_sigmas_toy_two(n, sigma_min, sigma_max, device='cpu'):
        """Return the two bounds and 0."""
        return torch.tensor([sigma_max, sigma_min, 0.0])

    assert 'toy_two' not in generation.BETWEEN and 'vp' not in generation.BETWEEN
    schedules.SCHEDULES.register('toy_two')(get_sigmas_toy_two)
    try:
        assert 'toy_two' in [*generation.BETWEEN]
        assert generation.BETWEEN['toy_two'](2, 0.5, 3.0).tolist() == [3.0, 0.5, 0.0]
    finally:
        schedules.SCHEDULES._entries.pop('toy_two')
    with pytest.raises(KeyError):
        generation.BETWEEN['vp']
