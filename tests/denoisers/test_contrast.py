"""The contrastive loss: its definition, its minimum, and where it does not apply."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import k_diffusion as K
from k_diffusion.denoisers import SCALINGS, Denoiser


class Constant(nn.Module):
    """F(x, sigma) = one learned number."""

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x, sigma):
        return self.value.expand_as(x)


def draw(n=5):
    torch.manual_seed(0)
    shape = (n, 2, 3, 3)
    x, noise = torch.randn(shape).double(), torch.randn(shape).double()
    return x, noise, torch.rand(n).double() + 0.2


@pytest.mark.parametrize('preconditioning', list(SCALINGS))
def test_it_is_the_distance_of_d_to_another_item_made_noisy_alike(preconditioning):
    """On D at sigma_i, F is the target of item j where D is x_j: both seen from x_j + sigma_i n_j.

    With F = 0 the squared distance to the target of j at level i is |x_j - c_skip (x_j + sigma_i
    n_j)|^2 / c_out^2.
    """
    x, noise, sigma = draw()
    denoiser = Denoiser(
        lambda x, sigma: torch.zeros_like(x), 0.6, contrast=0.3, preconditioning=preconditioning
    )
    expected = torch.empty(5, dtype=torch.float64)
    for i in range(5):
        c_skip, c_out, _ = SCALINGS[preconditioning](sigma[i], 0.6)
        own, other = (
            (x[j] - c_skip * (x[j] + sigma[i] * noise[j])).square().mean() / c_out**2
            for j in (i, (1, 0, 3, 2, 0)[i])
        )
        expected[i] = (own - 0.3 * other) * denoiser.weight(sigma[i : i + 1])[0]
    torch.testing.assert_close(denoiser.loss(x, noise, sigma), expected)


def test_the_best_constant():
    """Where F cannot see x, its best value is the mean target, whatever the contrast."""
    x, noise, sigma = draw(4000)
    sigma = torch.full_like(sigma, 0.7)
    network = Constant()
    denoiser = Denoiser(network, 0.6, contrast=0.2)
    gradient = torch.autograd.grad(denoiser.loss(x, noise, sigma).mean(), network.value)[0]
    mean = denoiser.example(x, noise, sigma)[2].mean()
    torch.testing.assert_close(gradient, -2 * (1 - 0.2) * mean)


def test_in_evaluation_mode_and_alone_an_item_is_measured_by_itself():
    x, noise, sigma = draw()
    plain, other = Denoiser(Constant(), 0.6), Denoiser(Constant(), 0.6, contrast=0.3)
    assert not torch.allclose(other.loss(x, noise, sigma), plain.loss(x, noise, sigma))
    for i in range(5):  # nothing to contrast with
        alone = other.loss(x[i : i + 1], noise[i : i + 1], sigma[i : i + 1])
        assert torch.equal(alone, plain.loss(x, noise, sigma)[i : i + 1])
    assert torch.equal(other.eval().loss(x, noise, sigma), plain.loss(x, noise, sigma))


def test_a_batch_may_be_split_into_even_parts():
    x, noise, sigma = draw(12)
    denoiser = Denoiser(Constant(), 0.6, contrast=0.3)
    whole = denoiser.loss(x, noise, sigma)
    for size in (2, 4, 6):
        parts = zip(x.split(size), noise.split(size), sigma.split(size))
        torch.testing.assert_close(torch.cat([denoiser.loss(*part) for part in parts]), whole)


def test_the_key_of_a_config():
    section = {'model': {'sigma_data': 0.5, 'loss_contrast': 0.05}}
    assert K.config.make_denoiser_wrapper(section)(Constant()).contrast == 0.05


@pytest.mark.parametrize('contrast', [-0.1, 1.0])
def test_out_of_range(contrast):
    with pytest.raises(ValueError, match='contrast must be at least 0 and below 1'):
        Denoiser(Constant(), 0.6, contrast=contrast)
