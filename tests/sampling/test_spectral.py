"""The spectral exponential integrator and Adams-Bashforth in a power of sigma: exactness,
orders, limits.
"""

import math

import pytest
import torch

from k_diffusion import sampling
from k_diffusion.core.spectral import dct, inverse_dct
from k_diffusion.denoisers.analytic import Gaussian, Mixture
from k_diffusion.sampling.samplers.multistep import power_weights

HIGH, LOW = 20.0, 0.05
MODEL = Mixture(
    torch.tensor([[1.0, 0.0], [-1.0, 0.7], [0.2, -1.2]], dtype=torch.float64),
    torch.tensor([0.3, 0.4, 0.5], dtype=torch.float64),
)
X = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * HIGH
WRONG = sampling.Spectrum(
    torch.tensor([0.3, -0.2], dtype=torch.float64), torch.tensor([0.9, 0.1], dtype=torch.float64)
)


def schedule(n):
    return torch.linspace(math.log(HIGH), math.log(LOW), n + 1, dtype=torch.float64).exp()


CONVERGED = sampling.sample_exp_ab(
    MODEL, X, schedule(20_000 // 8), startup='res_2s', order=3, disable=True
)


def slope(function, **options):
    n = torch.tensor([32.0, 64.0, 128.0, 256.0], dtype=torch.float64)
    ends = [function(MODEL, X, schedule(int(k)), disable=True, **options) for k in n]
    errors = torch.stack([(end - CONVERGED).square().mean().sqrt() for end in ends]).log()
    n = n.log() - n.log().mean()
    return -(n * errors).sum().item() / (n * n).sum().item()


@pytest.mark.parametrize(('order', 'expected_order'), [(1, 0.98), (2, 1.95), (3, 2.94)])
def test_order_of_sei_with_a_wrong_spectrum(order, expected_order):
    assert slope(sampling.sample_sei, spectrum=WRONG, order=order) == pytest.approx(
        expected_order, abs=0.2
    )


@pytest.mark.parametrize(('order', 'expected_order'), [(2, 1.96), (3, 3.05), (4, 2.2)])
def test_order_of_rab(order, expected_order):
    assert slope(sampling.sample_rab, order=order) == pytest.approx(
        expected_order, abs=0.2 if order < 4 else 0.8
    )


@pytest.mark.parametrize('n', [1, 3, 10])
@pytest.mark.parametrize('tele', [False, True])
def test_sei_is_exact_on_its_gaussian(n, tele):
    model = Gaussian(
        torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64),
        torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64),
    )
    x = torch.randn(5, 3, dtype=torch.float64) * HIGH
    spectrum = sampling.Spectrum(model.mean, model.std**2)
    for sigmas, end in (
        (schedule(n), LOW),
        (torch.cat([schedule(n), torch.zeros(1, dtype=torch.float64)]), 0.0),
    ):
        out = sampling.sample_sei(model, x, sigmas, spectrum=spectrum, tele=tele, disable=True)
        torch.testing.assert_close(out, model.flow(x, HIGH, end), rtol=1e-12, atol=1e-12)


def test_tele_asks_the_model_nothing_in_the_first_step():
    states = list(
        sampling.iterate('sei', MODEL, X, schedule(6), spectrum=WRONG, tele=True, disable=True)
    )
    assert [state.nfe for state in states] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize('order', [1, 2, 3])
def test_sei_without_variance_is_exponential_adams(order):
    none = sampling.Spectrum.isotropic(0.0)
    for sigmas in (schedule(7), torch.cat([schedule(7), torch.zeros(1, dtype=torch.float64)])):
        torch.testing.assert_close(
            sampling.sample_sei(MODEL, X, sigmas, spectrum=none, order=order, disable=True),
            sampling.sample_exp_ab(MODEL, X, sigmas, order=order, disable=True),
            rtol=1e-10,
            atol=1e-10,
        )


def test_rab_of_rho_1_is_lms():
    sigmas = torch.cat([schedule(9), torch.zeros(1, dtype=torch.float64)])
    torch.testing.assert_close(
        sampling.sample_rab(MODEL, X, sigmas, order=3, rho=1.0, disable=True),
        sampling.sample_lms(MODEL, X, sigmas, order=3, disable=True),
        rtol=1e-10,
        atol=1e-10,
    )
    assert sum(power_weights((5.0, 7.0, 9.0), 2.0, 7.0)) == pytest.approx(-3)


def test_a_spectrum_of_images():
    """Stationary noise of a known spectrum: its variances are found in the basis of cosines, and
    the basis turns back.
    """
    truth = 1 / (1 + torch.arange(8.0)[:, None] + torch.arange(8.0)[None]) ** 2
    data = 0.25 + inverse_dct(torch.randn(4000, 3, 8, 8, dtype=torch.float64) * truth.sqrt())
    spectrum = sampling.Spectrum.of(data)
    torch.testing.assert_close(spectrum.variance, truth.double().expand(3, 8, 8), rtol=0.15, atol=0)
    assert spectrum.mean.mean().item() == pytest.approx(0.25, abs=0.02)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(spectrum.synthesise(spectrum.analyse(x)), x)
    torch.testing.assert_close(inverse_dct(dct(x)), x)


def test_a_spectrum_of_vectors():
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    data = (
        torch.randn(20_000, 4, dtype=torch.float64) * torch.tensor([3.0, 1.0, 0.3, 0.1]) @ turn.T
        + 2
    )
    spectrum = sampling.Spectrum.of(data)
    exact = torch.tensor([0.1, 0.3, 1.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(spectrum.variance.sort().values.sqrt(), exact, rtol=0.03, atol=0)
    assert (spectrum.mean - 2).abs().max() < 0.1


def test_refusals():
    with pytest.raises(ValueError, match=r'items of the shape of the spectrum, \(2,\)'):
        sampling.sample_sei(MODEL, torch.randn(2, 3), schedule(3), spectrum=WRONG, disable=True)
    with pytest.raises(ValueError, match='order must be .*; got 0'):
        sampling.sample_sei(MODEL, X, schedule(3), order=0, disable=True)
    with pytest.raises(ValueError, match='rho must be .*; got 0'):
        sampling.sample_rab(MODEL, X, schedule(3), rho=0.0, disable=True)
    with pytest.raises(ValueError, match='at least two items'):
        sampling.Spectrum.of(torch.zeros(1, 3))
