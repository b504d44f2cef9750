"""The adaptive solver and the likelihood against closed forms."""
import math

import pytest
import torch

from k_diffusion import sampling
from k_diffusion.denoisers.analytic import Gaussian, Mixture
from k_diffusion.sampling.ode import dormand_prince


@pytest.mark.parametrize('tolerance', [1e-3, 1e-6, 1e-9])
def test_solver_keeps_its_tolerance(tolerance):
    y = (torch.tensor([[1., 2.]], dtype=torch.float64), torch.tensor([0.], dtype=torch.float64))
    (a, b), evaluations = dormand_prince(lambda t, y: (y[0] * math.cos(t), y[0].sum(1)), y, 0., 5., tolerance, tolerance)
    torch.testing.assert_close(a, y[0] * math.exp(math.sin(5.)), rtol=0, atol=20 * tolerance)
    assert 20 < evaluations < 2000 and b.item() > 0
    back, _ = dormand_prince(lambda t, y: (y[0] * math.cos(t),), (a,), 5., 0., tolerance, tolerance)
    torch.testing.assert_close(back[0], y[0], rtol=0, atol=40 * tolerance)


def test_solver_has_order_five():
    errors = []
    for tolerance in (1e-5, 1e-10):
        y, evaluations = dormand_prince(lambda t, y: (-y[0],), (torch.ones(1, 1, dtype=torch.float64),), 0., 4., tolerance, 0.)
        errors.append((math.log(evaluations), math.log(abs(y[0].item() - math.exp(-4)))))
    assert (errors[0][1] - errors[1][1]) / (errors[1][0] - errors[0][0]) > 4


def test_solver_refuses_nan_and_endless_runs():
    one = (torch.ones(1, 1),)
    with pytest.raises(ValueError, match='NaN or infinite near t=0'):
        dormand_prince(lambda t, y: (y[0] * math.nan,), one, 0., 1., 1e-4, 1e-4)
    with pytest.raises(ValueError, match='evaluations ended at t='):
        dormand_prince(lambda t, y: (y[0] ** 2,), one, 0., 2., 1e-6, 1e-6, max_evaluations=200)


@pytest.mark.parametrize('high', [5., 80.])
def test_gaussian(high):
    model = Gaussian(torch.zeros(16, dtype=torch.float64), torch.linspace(0.2, 1., 16, dtype=torch.float64))
    x = torch.randn(6, 16, dtype=torch.float64) * model.std
    ll, info = sampling.log_likelihood(model, x, 0.01, high)
    error = (ll - model.log_prob(x, 0.01)) / 16
    assert error.abs().max() < (2e-2 if high == 5. else 1e-3) and info['fevals'] < 120  # the prior ignores the data's own variance


def test_mixture_with_many_probes():
    """The divergence of a mixture is not diagonal, so one probe is right on average only."""
    model = Mixture(torch.tensor([[1., 0.], [-1., 0.7]], dtype=torch.float64), torch.tensor([0.3, 0.4], dtype=torch.float64))
    x = torch.tensor([[0.3, 0.2]], dtype=torch.float64).expand(400, 2)
    ll, _ = sampling.log_likelihood(model, x, 0.05, 60.)
    exact = model.log_prob(x[:1], 0.05).item()
    assert ll.std() > 0.01 and ll.mean().item() == pytest.approx(exact, abs=4 * ll.std().item() / 20 + 2e-3)


def test_precision_and_refusals():
    model = lambda x, sigma, gain: gain * x / (1 + sigma[:, None] ** 2)
    ll, _ = sampling.log_likelihood(model, torch.ones(2, 4, dtype=torch.bfloat16), 0.1, torch.tensor(20.), extra_args={'gain': 1.})
    assert ll.dtype == torch.float32
    exact = torch.distributions.Normal(0, math.sqrt(1.01)).log_prob(torch.ones(4)).sum().item()
    assert ll[0].item() == pytest.approx(exact, abs=0.2)
    with pytest.raises(ValueError, match='no range of noise levels'):
        sampling.log_likelihood(model, torch.ones(2, 4), 0., 20.)
    with pytest.raises(ValueError, match='log_likelihood: the model returned NaN'):
        sampling.log_likelihood(lambda x, sigma: x * math.nan, torch.ones(2, 4), 0.1, 20.)
