"""The exact denoisers against Bayes' rule, Tweedie's formula and sampling."""

import math

import pytest
import torch

from k_diffusion.denoisers.analytic import Gaussian, Mixture

MIXTURE = Mixture(
    torch.tensor(
        [[[1.0, 0.0], [2.0, -1.0]], [[-1.0, 0.5], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]],
        dtype=torch.float64,
    ),
    torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64),
    torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64),
)
GAUSSIAN = Gaussian(
    torch.tensor([[1.0, 0.0], [2.0, -1.0]], dtype=torch.float64),
    torch.tensor([[0.2, 1.0], [0.5, 2.0]], dtype=torch.float64),
)


@pytest.mark.parametrize('model', [GAUSSIAN, MIXTURE])
def test_tweedie(model):
    """D = x + sigma^2 grad log p(x; sigma)."""
    x = torch.randn(5, 2, 2, dtype=torch.float64).mul(2).requires_grad_()
    sigma = 0.7
    (score,) = torch.autograd.grad(model.log_prob(x, sigma).sum(), x)
    torch.testing.assert_close(
        model(x, torch.full([5], sigma, dtype=torch.float64)), x + sigma**2 * score
    )


@pytest.mark.parametrize('model', [GAUSSIAN, MIXTURE])
def test_items_have_their_own_sigma(model):
    x, sigma = (
        torch.randn(3, 2, 2, dtype=torch.float64),
        torch.tensor([0.1, 1.0, 30.0], dtype=torch.float64),
    )
    one_by_one = torch.cat([model(x[i : i + 1], sigma[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(model(x, sigma), one_by_one)


def test_posterior_mean_by_sampling():
    """E[clean | noisy] is the regression of clean on any function of noisy: its residual is
    uncorrelated with it.
    """
    generator = torch.Generator().manual_seed(0)
    weights = MIXTURE.weights / MIXTURE.weights.sum()
    k = torch.multinomial(weights, 200_000, replacement=True, generator=generator)
    clean = MIXTURE.means[k] + MIXTURE.stds[k][:, None, None] * torch.randn(
        len(k), 2, 2, generator=generator, dtype=torch.float64
    )
    noisy = clean + 0.8 * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    residual = clean - MIXTURE(noisy, torch.full([len(k)], 0.8, dtype=torch.float64))
    for feature in (torch.ones_like(noisy), noisy, noisy**2, (noisy > 0).double()):
        assert (residual * feature).mean(0).abs().max() < 0.02
    assert residual.square().mean() < 0.9 * (clean - clean.mean(0)).square().mean()


def test_a_mixture_of_one_is_a_gaussian():
    mixture = Mixture(GAUSSIAN.mean[None], GAUSSIAN.std[None])
    x, sigma = torch.randn(4, 2, 2, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    torch.testing.assert_close(mixture(x, sigma), GAUSSIAN(x, sigma))
    torch.testing.assert_close(mixture.log_prob(x, 0.3), GAUSSIAN.log_prob(x, 0.3))


def test_density_integrates_to_one():
    model = Mixture(
        torch.tensor([[-1.0], [2.0]], dtype=torch.float64),
        torch.tensor([0.3, 0.5], dtype=torch.float64),
    )
    grid = torch.linspace(-15, 15, 20_001, dtype=torch.float64)[:, None]
    assert (model.log_prob(grid, 0.4).exp().sum() * 30 / 20_000).item() == pytest.approx(
        1, abs=1e-9
    )


def test_flow_is_the_probability_flow():
    x, n = torch.randn(3, 2, 2, dtype=torch.float64) * 5, 4000
    exact, h = GAUSSIAN.flow(x, 5.0, 0.1), math.log(0.1 / 5.0) / n
    for i in range(n):  # the midpoint rule in log sigma
        sigma = 5.0 * math.exp(i * h)
        half = x + h / 2 * (x - GAUSSIAN(x, torch.full([3], sigma, dtype=torch.float64)))
        x = x + h * (
            half - GAUSSIAN(half, torch.full([3], sigma * math.exp(h / 2), dtype=torch.float64))
        )
    torch.testing.assert_close(x, exact, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        GAUSSIAN.flow(exact, 0.1, 5.0), GAUSSIAN.flow(GAUSSIAN.flow(exact, 0.1, 1.0), 1.0, 5.0)
    )
