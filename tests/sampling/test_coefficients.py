"""Weights against quadrature, laws of the ancestral split, the step size controller."""

import math

import pytest
import torch
from scipy import integrate

from k_diffusion import sampling
from k_diffusion.sampling.coefficients import lagrange


def basis(nodes, j, s):
    return math.prod((s - other) / (nodes[j] - other) for k, other in enumerate(nodes) if k != j)


@pytest.mark.parametrize('k', range(5))
@pytest.mark.parametrize('z', [-40.0, -3.0, -1.01, -0.99, -0.3, -1e-3, -1e-9, 0.0, 0.7, 2.5])
def test_phi(k, z):
    if k == 0:
        assert sampling.phi(0, z) == math.exp(z)
        return
    exact, _ = integrate.quad(
        lambda s: math.exp((1 - s) * z) * s ** (k - 1) / math.factorial(k - 1),
        0,
        1,
        epsabs=0,
        epsrel=1e-13,
    )
    assert sampling.phi(k, z) == pytest.approx(exact, rel=1e-12)


def test_lagrange_rows_are_the_basis():
    nodes = [0.0, -0.7, -2.5, 1.0]
    for j, row in enumerate(lagrange(nodes)):
        values = [sum(c * node**k for k, c in enumerate(row)) for node in nodes]
        assert values == pytest.approx([float(i == j) for i in range(4)], abs=1e-14)


@pytest.mark.parametrize('nodes', [[14.0], [14.0, 20.0], [3.0, 5.0, 9.0], [0.03, 0.05, 0.2, 1.0]])
def test_adams_weights(nodes):
    start, end = nodes[0], nodes[0] / 2
    exact = [
        integrate.quad(lambda s, j=j: basis(nodes, j, s), start, end, epsabs=0, epsrel=1e-13)[0]
        for j in range(len(nodes))
    ]
    assert sampling.adams_weights(nodes, start, end) == pytest.approx(exact, rel=1e-11)


@pytest.mark.parametrize('h', [1e-4, 0.3, 2.0])
@pytest.mark.parametrize('nodes', [[0.0], [0.0, -0.8], [0.0, -1.3, -2.0], [1.0, 0.0, -0.6, -1.9]])
def test_exponential_weights(nodes, h):
    exact = [
        h
        * integrate.quad(
            lambda s, j=j: math.exp(-h * (1 - s)) * basis(nodes, j, s), 0, 1, epsabs=0, epsrel=1e-12
        )[0]
        for j in range(len(nodes))
    ]
    assert sampling.exponential_weights(nodes, h) == pytest.approx(exact, rel=1e-10)
    assert sum(exact) == pytest.approx(-math.expm1(-h))


def test_the_two_node_weights_are_those_of_2m_sde():
    h, r = 0.7, 1.3
    b_0, b_1 = sampling.exponential_weights([0.0, -r], h)
    gain = 1 - (1 - math.exp(-h)) / h
    assert (b_0, b_1) == (pytest.approx(1 - math.exp(-h) + gain / r), pytest.approx(-gain / r))


def test_linear_multistep_coeff():
    t = torch.tensor([10.0, 7.0, 4.0, 2.0, 1.0])
    for order in (1, 2, 3, 4):
        nodes = t[3 - order + 1 : 4].flip(0).tolist()
        actual = [sampling.linear_multistep_coeff(order, t, 3, j) for j in range(order)]
        assert actual == pytest.approx(sampling.adams_weights(nodes, 2.0, 1.0)) and sum(
            actual
        ) == pytest.approx(-1)
    with pytest.raises(
        ValueError, match='order must be at most 2 in step 1, which has 1 past levels; got 3'
    ):
        sampling.linear_multistep_coeff(3, t, 1, 0)


def test_ancestral_step():
    for eta in (0.3, 1.0, 2.5):
        down, up = sampling.get_ancestral_step(7.0, 3.0, eta)
        assert down**2 + up**2 == pytest.approx(9) and 0 < up <= 3
    assert sampling.get_ancestral_step(7.0, 3.0, 0.0) == (3.0, 0.0) and sampling.get_ancestral_step(
        7.0, 0.0
    ) == (0.0, 0.0)
    assert sampling.get_ancestral_step(7.0, 3.0)[1] == pytest.approx(3 * math.sqrt(1 - 9 / 49))
    tensors = sampling.get_ancestral_step(torch.tensor(7.0), torch.tensor(3.0))
    assert [value.item() for value in tensors] == pytest.approx(
        sampling.get_ancestral_step(7.0, 3.0), rel=1e-6
    )


def test_to_d():
    x, denoised = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    expected = (x - denoised) / 5
    for sigma in (5.0, torch.tensor(5.0), torch.full([2], 5.0)):
        torch.testing.assert_close(sampling.to_d(x, sigma, denoised), expected)


def test_controller():
    pid = sampling.PIDStepSizeController(0.1, 0.0, 1.0, 0.0, order=2)
    assert pid.propose_step(torch.tensor(0.1)) and pid.h > 0.1
    before = pid.h
    assert not pid.propose_step(10.0) and pid.h < before
    pid = sampling.PIDStepSizeController(0.1, 0.3, 0.4, 0.1, order=3)
    for error in (0.5, 1.2, 0.9):
        pid.propose_step(error)
    inverse = [1 / (e + 1e-8) for e in (0.5, 1.2, 0.9)]
    h, errs = 0.1, [inverse[0]] * 3
    for value in inverse:
        factor = 1 + math.atan(
            value ** (0.8 / 3) * errs[1] ** (-0.5 / 3) * errs[2] ** (0.1 / 3) - 1
        )
        h *= factor
        if factor >= 0.81:
            errs = [value, value, errs[1]]
    assert pid.h == pytest.approx(h)
