"""Magnitudes: what is of unit variance stays so, and the length of a weight says nothing."""

from __future__ import annotations

import pytest
import torch

from k_diffusion.layers.magnitude import MPConv, MPFourier, mp_cat, mp_silu, mp_sum, normalize


def size(x):
    return x.square().mean().sqrt().item()


def gaussian(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def test_what_is_mixed_keeps_its_size():
    a, b = gaussian(400, 16, 8, 8), gaussian(400, 48, 8, 8)
    assert size(mp_silu(a)) == pytest.approx(1, abs=0.01)
    for t in (0.0, 0.3, 0.5, 1.0):
        assert size(mp_sum(a, b[:, :16], t)) == pytest.approx(1, abs=0.01)
        joined = mp_cat(a, b, t)
        assert size(joined) == pytest.approx(1, abs=0.01)
        # Each side's share of the whole is t, whatever the number of its channels.
        shares = joined[:, :16].square().sum(), joined[:, 16:].square().sum()
        assert (shares[1].sqrt() / (shares[0].sqrt() + shares[1].sqrt())).item() == pytest.approx(
            t, abs=0.01
        )
    assert torch.equal(mp_sum(a, b[:, :16], 0.0), a)


def test_normalize():
    x = 7 * gaussian(3, 4, 5) + 2
    assert normalize(x).square().mean((1, 2)).sqrt().tolist() == pytest.approx([1] * 3, abs=1e-3)
    assert torch.allclose(
        normalize(x, dim=-1).square().mean(-1).sqrt(),
        torch.ones(3, 4, dtype=torch.float64),
        atol=1e-3,
    )
    assert normalize(torch.zeros(2, 3)).abs().max() == 0


def test_fourier_features_are_of_unit_size():
    features = MPFourier(5000)(torch.linspace(-2, 2, 7))
    assert features.shape == (7, 5000)
    assert features.square().mean(1).sqrt().tolist() == pytest.approx([1] * 7, abs=0.03)
    assert size(features[0] - features[6]) == pytest.approx(2**0.5, abs=0.1)


@pytest.mark.parametrize('kernel', [None, 1, 3])
def test_a_convolution_keeps_size_and_knows_no_length(kernel):
    layer = MPConv(32, 24, kernel).double()
    x = gaussian(500, 32) if kernel is None else gaussian(20, 32, 12, 12)
    y = layer(x)
    inside = y[..., 1:-1, 1:-1] if kernel == 3 else y  # at the border, zeros are seen
    assert size(inside) == pytest.approx(1, abs=0.02)
    torch.testing.assert_close(layer(x, gain=3.0), 3 * y)
    with torch.no_grad():
        layer.weight.mul_(
            torch.rand(24, dtype=torch.float64).view(24, *[1] * (layer.weight.ndim - 1)) + 2
        )
    torch.testing.assert_close(layer(x), y, rtol=1e-3, atol=1e-3)
    layer.proj_()
    assert layer.weight.flatten(1).square().mean(1).sqrt().tolist() == pytest.approx(
        [1] * 24, abs=1e-3
    )
    # The gradient is at right angles to the weight, so that a step can only turn it.
    (grad,) = torch.autograd.grad(layer(x).pow(3).sum(), layer.weight)
    along = (grad.flatten(1) * layer.weight.flatten(1)).sum(1) / (
        grad.flatten(1).norm(dim=1) * layer.weight.flatten(1).norm(dim=1)
    )
    assert along.abs().max() < 1e-3 < grad.abs().max()
