"""Distances between features: against scipy and closed forms, laws that must hold, and estimates
that are right on average.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.linalg import sqrtm

from k_diffusion import evaluation as E


def features(n, d=24, seed=0, shift=0.0, power=1.5):
    """Features whose spectrum falls by 10 ** power."""
    source = torch.Generator().manual_seed(seed)
    mix = torch.linalg.qr(
        torch.randn(d, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    )[0]
    scale = torch.logspace(0, -power, d, dtype=torch.float64) * 4
    return (torch.randn(n, d, generator=source, dtype=torch.float64) * scale) @ mix + shift


def by_scipy(x, y):
    a, b = (np.cov(z.numpy(), rowvar=False) for z in (x, y))
    return ((x.mean(0) - y.mean(0)) ** 2).sum().item() + np.trace(a + b - 2 * sqrtm(a @ b).real)


def test_the_originals_numbers(golden):
    values = golden('utilities')
    x, y = values['feat_a'], values['feat_b']
    torch.testing.assert_close(
        E.fid(x, y), values['fid'], rtol=1e-6, atol=1e-6
    )  # its epsilon of 1e-8 is in it
    torch.testing.assert_close(E.kid(x, y), values['kid'], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(E.squared_mmd(x, y), values['squared_mmd'], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('n', [400, 60])
def test_fid_is_scipys(n):
    x, y = features(n), features(300, seed=5, shift=0.3)
    expected = by_scipy(x, y)
    assert E.fid(x, y).item() == pytest.approx(expected, rel=1e-8, abs=1e-8) and expected > 1
    from_moments = E.frechet_distance(E.Moments.of(x), E.Moments.of(y.split(37)))
    assert from_moments.item() == pytest.approx(expected, rel=1e-8, abs=1e-8)


def test_fid_of_commuting_gaussians_in_closed_form():
    x, y = torch.randn(9, 3, dtype=torch.float64), torch.randn(9, 3, dtype=torch.float64)
    x = (
        torch.linalg.qr(x - x.mean(0))[0]
        * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
        * math.sqrt(8)
    )
    y = (
        torch.linalg.qr(y - y.mean(0))[0]
        * torch.tensor([2.0, 2.0, 7.0], dtype=torch.float64)
        * math.sqrt(8)
        + 1
    )
    assert E.fid(x, y).item() == pytest.approx(1 + 0 + 16 + 3, rel=1e-12)


@pytest.mark.parametrize('n', [500, 10])
def test_the_distance_to_itself_is_zero(n):
    for x in features(n, power=3.0) * 50, features(n).float():
        assert abs(E.fid(x, x).item()) < 1e-9 * x.double().var(0).sum().item()
        assert abs(E.fid(x, x.flip(0)).item()) < 1e-9 * x.double().var(0).sum().item()
        assert E.fid(x, x + 1).item() == pytest.approx(x.shape[1], rel=1e-6)
    assert abs(E.fid(features(n), features(n)).item()) < 1e-9


def test_fid_has_a_gradient():
    x, y = features(30, 4).requires_grad_(), features(40, 4, seed=2, shift=1.0)
    assert torch.autograd.gradcheck(lambda x: E.fid(x, y), (x,), atol=1e-5)


def test_fid_infinity_takes_the_bias_away():
    y = features(20_000)
    estimates = [E.fid_infinity(features(600, seed=seed), y, seed=seed)[0] for seed in range(1, 9)]
    plain = [E.fid(features(600, seed=seed), y).item() for seed in range(1, 9)]
    assert abs(np.mean(estimates)) < 0.35 * np.mean(plain) and np.mean(plain) > 0.1
    value, stderr = E.fid_infinity(features(600, seed=1, shift=1.0), y)
    assert value == pytest.approx(24, rel=0.1) and 0 < stderr < 1


def test_the_line_to_infinity():
    value, stderr = E.frechet.intercept([1.0, 2.0, 3.0, 4.0], [5.0, 7.0, 9.0, 11.0])
    assert value == pytest.approx(3.0) and stderr == pytest.approx(0.0, abs=1e-9)
    noisy, stderr = E.frechet.intercept([1.0, 2.0, 3.0], [1.0, 2.0, 4.0])
    assert noisy == pytest.approx(-2 / 3) and stderr == pytest.approx(
        math.sqrt(1 / 6 * (1 / 3 + 4 / 2))
    )


def test_square_root_and_its_derivative():
    a = features(50, 5).T @ features(50, 5)
    torch.testing.assert_close(E.sqrtm_eig(a) @ E.sqrtm_eig(a), a)
    root = torch.randn(4, 4, dtype=torch.float64)
    symmetric = lambda r: E.sqrtm_eig(r @ r.T + torch.eye(4, dtype=torch.float64))
    assert torch.autograd.gradcheck(symmetric, (root.requires_grad_(),))
    equal = torch.eye(3, dtype=torch.float64).requires_grad_()
    E.sqrtm_eig(equal).trace().backward()
    torch.testing.assert_close(equal.grad, 0.5 * torch.eye(3, dtype=torch.float64))


def test_kid_is_right_on_average_and_its_error_is_honest():
    """Under the kernel (x y + 1)^3 on one dimension the discrepancy of N(0, 1) and N(m, 1) is a
    polynomial of moments.
    """
    m = 0.3
    moments = [(0.0, m), (1.0, 1 + m**2), (0.0, m**3 + 3 * m)]
    true = (
        3 * (moments[0][1] - moments[0][0]) ** 2
        + 3 * (moments[1][1] - moments[1][0]) ** 2
        + (moments[2][1] - moments[2][0]) ** 2
    )
    source = torch.Generator().manual_seed(3)
    values, errors = [], []
    for _ in range(100):
        x, y = (torch.randn(120, 1, generator=source, dtype=torch.float64) for _ in range(2))
        value, error = E.kid_with_error(x, y + m)
        assert value == pytest.approx(E.squared_mmd(x, y + m).item(), rel=1e-9)
        values.append(value)
        errors.append(error)
    spread = np.std(values)
    assert np.mean(values) == pytest.approx(true, abs=3 * spread / math.sqrt(100))
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(spread, rel=0.25)


def test_kid_by_subsets_and_parts():
    x, y = features(300), features(260, seed=4, shift=0.5)
    mean, std = E.kid_subsets(x, y, subsets=40, size=100)
    assert mean == pytest.approx(E.kid(x, y).item(), abs=4 * std / math.sqrt(40) + 1e-9) and std > 0


def plain_mmd(x, y):
    """The unbiased discrepancy, pair by pair."""
    k = lambda a, b: (float(a @ b) / len(a) + 1) ** 3
    within = [
        sum(k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j)
        / (len(z) * (len(z) - 1))
        for z in (x, y)
    ]
    return sum(within) - 2 * sum(k(a, b) for a in x for b in y) / (len(x) * len(y))


@pytest.mark.parametrize('n, m, most', [(30, 26, 10), (31, 23, 6), (11, 17, 4), (9, 8, 20)])
def test_kid_cuts_its_parts_at_the_originals_rows(n, m, most):
    """Part i holds rows round(i n / parts) to round((i + 1) n / parts) of n."""
    x, y = features(n, 4).numpy(), features(m, 4, seed=4, shift=0.5).numpy()
    parts = math.ceil(max(n, m) / most)
    rows = lambda z, i: z[round(i * len(z) / parts) : round((i + 1) * len(z) / parts)]
    expected = sum(plain_mmd(rows(x, i), rows(y, i)) for i in range(parts)) / parts
    assert E.kid(x, y, max_size=most).item() == pytest.approx(expected, rel=1e-10)


def test_cmmd_is_the_kernel_mean():
    x, y = features(40, 6), features(30, 6, seed=2, shift=2.0)
    a, b = (z / z.norm(dim=1, keepdim=True) for z in (x, y))
    k = lambda p, q: torch.exp(-(torch.cdist(p, q) ** 2) / 200).mean()
    assert E.cmmd(x, y, chunk=7).item() == pytest.approx(
        1000 * (k(a, a) + k(b, b) - 2 * k(a, b)).item(), rel=1e-8
    )
    assert abs(E.cmmd(x, x).item()) < 1e-9 < E.cmmd(x, y).item()


def test_moments_merge_whatever_the_portions():
    x = features(500) + 1e4
    whole, parts, rest = E.Moments.of(x), E.Moments.of(x[:311].split(13)), E.Moments.of(x[311:])
    parts.merge(rest)
    parts.merge(E.Moments())
    assert parts.n == 500
    torch.testing.assert_close(parts.mean, x.mean(0))
    torch.testing.assert_close(parts.covariance, torch.cov(x.T))
    torch.testing.assert_close(whole.covariance, parts.covariance)
    again = E.Moments()
    again.load_state_dict(parts.state_dict())
    assert torch.equal(again.scatter, parts.scatter) and again.n == 500


def test_refusals_name_what_is_allowed():
    x = features(10)
    for call, complaint in (
        (lambda: E.fid(x, x[:, :3]), 'one extractor for both'),
        (lambda: E.fid(x[0], x), r'\[N, D\]'),
        (lambda: E.fid(x * math.nan, x), 'NaN'),
        (lambda: E.fid(x[:1], x), 'at least 2'),
        (lambda: E.Moments.of(x[:1]).covariance, 'at least 2'),
        (lambda: E.kid(x, x[:3], 4), 'similar sizes'),
        (lambda: E.measure(x, x, ['fidd']), "did you mean 'fid'"),
    ):
        with pytest.raises(ValueError, match=complaint):
            call()


def test_the_jackknife_is_its_formula():
    """Of the variance with divisor n, whose bias of -1 / n a jackknife of single rows takes
    away.
    """
    x = np.random.default_rng(0).normal(size=12)
    value, unbiased, stderr = E.jackknife(lambda rows: rows.numpy().var(), x, 6)
    pairs = x.reshape(6, 2)
    without = [np.delete(pairs, i, 0).var() for i in range(6)]
    assert value == pytest.approx(x.var())
    assert unbiased == pytest.approx(6 * x.var() - 5 * np.mean(without))
    assert stderr == pytest.approx(math.sqrt(5 * np.var(without)))


def test_intervals_are_students():
    for freedom in (1, 4, 19, 400):
        low, high = E.interval(3.0, 0.5, freedom, 0.9)
        assert (3 + stats.t.ppf([0.05, 0.95], freedom) * 0.5) == pytest.approx([low, high])


def gaussians(d, seed, shift, scale):
    """A maker of samples, a reference set, and the closed form of the distance to it."""
    source = np.random.default_rng(seed)
    axes = np.linalg.qr(source.normal(size=(d, d)))[0]
    std = np.logspace(0, -1, d)
    y = source.normal(size=(1000, d)) * std @ axes
    mean, cov = np.full(d, shift / d**0.5), axes.T * (std * scale) ** 2 @ axes
    other = np.cov(y, rowvar=False)
    true = (
        ((y.mean(0) - mean) ** 2).sum()
        + np.trace(cov + other)
        - 2 * np.sqrt(np.linalg.eigvals(cov @ other).real).sum()
    )
    return lambda n: source.normal(size=(n, d)) * std * scale @ axes + mean, y, true


@pytest.mark.parametrize('d, n, shift, scale', [(6, 150, 0.5, 1.2), (12, 100, 0.0, 1.0)])
def test_intervals_of_fid_belong_to_the_number_beside_them(d, n, shift, scale):
    """That of fid covers its mean over draws, that of fid_unbiased the closed form; binomial
    bounds.
    """
    draw, y, true = gaussians(d, 3, shift, scale)
    measurements = [E.measure(draw(n), y, 'fid', blocks=20) for _ in range(120)]
    mean = np.mean([values['fid'] for values in measurements])
    assert mean > 1.05 * true
    for name, target in (('fid', mean), ('fid_unbiased', true)):
        assert all(v[f'{name}_low'] < v[name] < v[f'{name}_high'] for v in measurements)
        covered = sum(v[f'{name}_low'] <= target <= v[f'{name}_high'] for v in measurements)
        assert 105 <= covered <= 120  # 95 % less four standard errors


def test_intervals_of_the_other_numbers_cover():
    draw, y, true = gaussians(6, 5, 0.5, 1.2)
    measurements = [E.measure(draw(150), y, ('fid_infinity', 'kid')) for _ in range(40)]
    assert sum(v['fid_infinity_low'] <= true <= v['fid_infinity_high'] for v in measurements) >= 33
    kid = E.squared_mmd(draw(4000), y).item()
    assert sum(v['kid_low'] <= kid <= v['kid_high'] for v in measurements) >= 33
