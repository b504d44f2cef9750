"""Every registered sampler converges with the order it declares, on an exact mixture."""
import functools
import math

import pytest
import torch

from k_diffusion import sampling
from k_diffusion.denoisers.analytic import Mixture

HIGH, LOW = 20., 0.05
MODEL = Mixture(torch.tensor([[1., 0.], [-1., 0.7], [0.2, -1.2]], dtype=torch.float64), torch.tensor([0.3, 0.4, 0.5], dtype=torch.float64))
RAMPED = {'lms': 3.4}  # an order above 3 is hidden by the first step of a ramp (measured elsewhere too: 3.39)
COUNTS = [32, 64, 128, 256]


@functools.cache
def start():
    return torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * HIGH


@functools.cache
def converged(n=2000):
    """The end of the probability flow by the classical Runge-Kutta method in log sigma."""
    x, h = start(), math.log(LOW / HIGH) / n

    def slope(x, u):
        return x - MODEL(x, torch.full([len(x)], math.exp(u), dtype=torch.float64))

    for i in range(n):
        u = math.log(HIGH) + i * h
        k1 = slope(x, u)
        k2 = slope(x + h / 2 * k1, u + h / 2)
        k3 = slope(x + h / 2 * k2, u + h / 2)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(x + h * k3, u + h))
    return x


def schedule(n):
    return torch.linspace(math.log(HIGH), math.log(LOW), n + 1, dtype=torch.float64).exp()


def fitted_order(run):
    """The slope of the rms error over the number of steps."""
    n = torch.tensor(COUNTS, dtype=torch.float64).log()
    errors = torch.stack([(run(count) - converged()).square().mean().sqrt() for count in COUNTS]).log()
    n = n - n.mean()
    return -(n * errors).sum().item() / (n * n).sum().item()


@pytest.mark.parametrize('name', sampling.SAMPLERS)
def test_declared_order(name):
    entry = sampling.SAMPLERS[name]
    options = {'eta': 0.} if entry.stochastic else {}

    def run(n):
        if name == 'dpm_adaptive':
            return entry.function(MODEL, start(), LOW, HIGH, disable=True, h_init=math.log(HIGH / LOW) / n, rtol=1e9, icoeff=0.)
        if name == 'dpm_fast':
            return entry.function(MODEL, start(), LOW, HIGH, 3 * n + 1, disable=True)
        return entry.function(MODEL, start(), schedule(n), disable=True, **options)

    assert fitted_order(run) == pytest.approx(RAMPED.get(name, entry.order), abs=0.25)


@pytest.mark.parametrize('order', [1, 2, 3])
def test_order_of_lms(order):
    observed = fitted_order(lambda n: sampling.sample_lms(MODEL, start(), schedule(n), order=order, disable=True))
    assert observed == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize('solver_type', ['midpoint', 'heun'])
def test_both_solver_types_of_2m_sde(solver_type):
    assert fitted_order(lambda n: sampling.sample_dpmpp_2m_sde(MODEL, start(), schedule(n), eta=0., solver_type=solver_type,
                                                               disable=True)) == pytest.approx(2, abs=0.25)


def test_dpm_adaptive_keeps_its_tolerance():
    errors = []
    for tolerance in (1e-3, 1e-5, 1e-7):
        out = sampling.sample_dpm_adaptive(MODEL, start(), LOW, HIGH, rtol=tolerance, atol=tolerance, disable=True)
        errors.append((out - converged()).abs().max().item() / tolerance)
    assert max(errors) < 3


@pytest.mark.parametrize('name', sampling.SAMPLERS)
def test_declared_cost(name):
    entry, calls = sampling.SAMPLERS[name], 0

    def model(x, sigma):
        nonlocal calls
        calls += 1
        return MODEL(x, sigma)

    given = {'sigmas': schedule(10), 'sigma_min': LOW, 'sigma_max': HIGH, 'n': 10}
    steps = list(sampling.iterate(entry, model, start(), disable=True, **{key: given[key] for key in entry.takes}))
    assert calls == steps[-1].nfe == (10 if 'n' in entry.takes else entry.nfe * len(steps))


@pytest.mark.parametrize('name', [name for name, entry in sampling.SAMPLERS.items() if entry.stochastic])
def test_variance_of_stochastic_samplers(name):
    """On a Gaussian the marginal variance at the end is that of the data with noise of the last level."""
    variance = torch.tensor([2., 0.5, 0.15])[:, None] ** 2
    sigmas = sampling.get_sigmas_exponential(100, LOW, HIGH)[:-1]
    x = torch.randn(1, 3, 40_000) * (variance + HIGH ** 2).sqrt()

    def model(x, sigma):
        return variance / (variance + sigma ** 2) * x

    out = sampling.SAMPLERS[name].function(model, x, sigmas, disable=True)
    tolerance = 0.12 if sampling.SAMPLERS[name].order == 1 else 0.03
    torch.testing.assert_close(out[0].var(1), (variance + LOW ** 2)[:, 0], rtol=tolerance, atol=0)
