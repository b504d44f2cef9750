from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from k_diffusion.gns import DDPGradientStatsHook, GradientNoiseScale, SplitGradientStats


def test_noise_scale_of_known_noise():
    """Gradients G + N(0, sigma^2 / n) in d dimensions: the noise scale is d sigma^2 / |G|^2."""
    d, sigma, small, large = 50, 3.0, 4, 32
    true = torch.linspace(-1, 1, d, dtype=torch.float64)
    gns = GradientNoiseScale(beta=0.999)
    for _ in range(4000):
        parts = true + sigma * torch.randn(large // small, d, dtype=torch.float64) / small**0.5
        sq_small, sq_large = (
            parts.square().sum(1).mean().item(),
            parts.mean(0).square().sum().item(),
        )
        gns.update(sq_small, sq_large, small, large)
    assert gns.get_gns() == pytest.approx(d * sigma**2 / true.square().sum().item(), rel=0.1)
    sq_norm, var = gns.get_stats()
    assert var == pytest.approx(d * sigma**2, rel=0.05)
    assert sq_norm == pytest.approx(true.square().sum().item(), rel=0.1)


def test_first_update_is_the_estimate_itself():
    gns = GradientNoiseScale()
    assert math.isnan(gns.get_gns()) and math.isnan(gns.get_stats()[0])
    assert gns.update(5.0, 3.0, 2, 8) == pytest.approx(
        ((5 - 3) / (1 / 2 - 1 / 8)) / ((8 * 3 - 2 * 5) / 6)
    )
    assert gns.get_stats() == pytest.approx(((8 * 3 - 2 * 5) / 6, (5 - 3) / (1 / 2 - 1 / 8)))


def test_state_goes_on():
    straight, first, second = GradientNoiseScale(0.9), GradientNoiseScale(0.9), GradientNoiseScale()
    norms = [(5.0, 3.0), (4.0, 3.5), (6.0, 2.0)]
    for pair in norms:
        straight.update(*pair, 2, 8)
    first.update(*norms[0], 2, 8)
    second.load_state_dict(first.state_dict())
    for pair in norms[1:]:
        second.update(*pair, 2, 8)
    assert second.state_dict() == straight.state_dict()
    assert straight.state_dict().keys() == {
        'beta',
        'eps',
        'ema_sq_norm',
        'ema_var',
        'beta_cumprod',
        'gradient_noise_scale',
    }


def test_one_batch_size_is_refused():
    with pytest.raises(ValueError, match='0 < small < large'):
        GradientNoiseScale().update(1.0, 1.0, 8, 8)
    with pytest.raises(ValueError, match='DistributedDataParallel'):
        DDPGradientStatsHook(nn.Linear(2, 2))


def test_parts_of_a_batch_in_one_process():
    """The norms are those of the parts' gradients and of their mean, step after step, whatever a
    parameter is used for.
    """
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    net[0].bias.requires_grad_(False)
    stats = SplitGradientStats(net, 4)
    parameters = [p for p in net.parameters() if p.requires_grad]
    for _ in range(2):
        x = torch.randn(8, 3)
        loss = lambda rows: net(rows + net(rows)[:, :1]).square().mean()
        gradients = [
            torch.cat([g.flatten() for g in torch.autograd.grad(loss(part), parameters)])
            for part in x.chunk(4)
        ]
        stats._small.clear()
        for part in x.chunk(4):
            (loss(part) / 4).backward()
        small, large = stats.get_stats()
        assert small == pytest.approx(sum(g.square().sum().item() for g in gradients) / 4, rel=1e-5)
        assert large == pytest.approx((sum(gradients) / 4).square().sum().item(), rel=1e-5)
        net.zero_grad()
    with pytest.raises(ValueError, match='no backward pass'):
        stats.get_stats()
    with pytest.raises(ValueError, match='parts must be >= 2'):
        SplitGradientStats(net, 1)
