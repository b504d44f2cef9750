"""The losses of tuning by reward, against values and gradients found by hand."""

from __future__ import annotations

import math

import pytest
import torch

from k_diffusion.training.diffusion_nft import nft_loss, normalize_rewards, optimality
from k_diffusion.training.grpo import grpo_loss


def test_rewards_are_compared_within_their_group():
    rewards = torch.tensor([1.0, 5.0, 3.0, 7.0, 3.0, 7.0], dtype=torch.float64)
    groups = torch.tensor([4, 9, 4, 9, 9, 4])
    # Group 4 holds 1, 3, 7: mean 11/3, variance 56/9. Group 9 holds 5, 7, 3: mean 5, variance 8/3.
    a, b = math.sqrt(56) / 3, math.sqrt(8 / 3)
    expected = [(1 - 11 / 3) / a, 0, (3 - 11 / 3) / a, 2 / b, -2 / b, (7 - 11 / 3) / a]
    assert normalize_rewards(rewards, groups).tolist() == pytest.approx(expected, abs=1e-12)


def test_equal_rewards_are_not_blown_up():
    rewards = torch.tensor([0.990, 0.992], dtype=torch.float64)
    result = normalize_rewards(rewards, torch.zeros(2).long(), floor=0.05)
    assert result.tolist() == pytest.approx([-0.02, 0.02], abs=1e-12)


def test_optimality_is_half_at_the_mean_and_clipped_at_five():
    result = optimality(torch.tensor([-9.0, -5.0, -2.5, 0.0, 2.5, 9.0]))
    assert result.tolist() == pytest.approx([0, 0, 0.25, 0.5, 0.75, 1])


def test_the_loss_of_one_item_by_hand():
    # D_old = 1, D = 2, x = 4, b = 1/2: D+ = 3/2 and D- = 1/2 are 5/2 and 7/2 away, and a square
    # over its absolute value is that value. r = 3/4: (3/4 5/2 + 1/4 7/2) / (1/2) = 11/2.
    full = torch.full((1, 2, 3), 1.0)
    result = nft_loss(2 * full, full, 4 * full, torch.tensor([0.75]), 0.5)
    assert result.tolist() == pytest.approx([5.5])
    # The pull adds 0.1 |2 - 0|^2 / (5/2).
    result = nft_loss(2 * full, full, 4 * full, torch.tensor([0.75]), 0.5, 0 * full, 0.1)
    assert result.tolist() == pytest.approx([5.66])


@pytest.mark.parametrize('strength', [0.25, 1.0, 2.0])
def test_the_first_step_goes_from_the_old_estimate_towards_rewarded_samples(strength):
    # Where D = D_old both squares are |D_old - x|^2 / w, and the gradient of the loss to D is
    # 2 (2 r - 1) (D_old - x) / (n w), whatever b: zero for a sample of r = 1/2.
    before = torch.tensor([[0.2, -0.4], [1.0, 0.5], [0.3, 0.1]], dtype=torch.float64)
    clean = torch.tensor([[0.6, 0.1], [-0.5, 0.0], [0.9, 0.4]], dtype=torch.float64)
    optimal = torch.tensor([1.0, 0.2, 0.5], dtype=torch.float64)
    denoised = before.clone().requires_grad_()
    nft_loss(denoised, before, clean, optimal, strength).sum().backward()
    error = before - clean
    weight = error.abs().mean(1, keepdim=True)
    expected = 2 * (2 * optimal[:, None] - 1) * error / (2 * weight)
    assert torch.allclose(denoised.grad, expected, rtol=1e-12)


@pytest.mark.parametrize('strength', [0.5, 1.0])
def test_the_minimum_is_the_one_of_the_paper(strength):
    # Theorem 3.2: D = D_old + (2 / b) a (D_positive - D_old). Samples -1 and 1 with r = 1 and 1/2,
    # D_old = 0: a = 3/4 and D_positive = (-1 + 1/2) / (3/2) = -1/3, so that D = -1/2 / b. There D+
    # is -1/2 and D- is 1/2, whose errors are divided by 1/2 and 3/2. The test multiplies by them.
    clean = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    denoised = torch.tensor([[-0.5 / strength]], dtype=torch.float64, requires_grad=True)
    both, before = denoised.expand(2, 1), torch.zeros(2, 1, dtype=torch.float64)
    one, zero = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    positive = nft_loss(both, before, clean, one, strength) * torch.tensor([0.5, 1.5])
    negative = nft_loss(both, before, clean, zero, strength) * torch.tensor([1.5, 0.5])
    optimal = torch.tensor([1.0, 0.5], dtype=torch.float64)
    (optimal * positive + (1 - optimal) * negative).sum().backward()
    assert abs(denoised.grad.item()) < 1e-12


def test_the_ratio_is_clipped_where_it_would_go_further():
    before = torch.zeros(4, dtype=torch.float64)
    log_prob = torch.log(torch.tensor([1.1, 1.5, 1.5, 0.5], dtype=torch.float64)).requires_grad_()
    advantages = torch.tensor([2.0, 2.0, -2.0, -2.0])
    loss = grpo_loss(log_prob, before, advantages, 0.2)
    assert loss.tolist() == pytest.approx([-2.2, -2.4, 3.0, 1.6])
    loss.sum().backward()
    # -q A where it is not clipped, 0 where it is.
    assert log_prob.grad.tolist() == pytest.approx([-2.2, 0.0, 3.0, 0.0])


def test_a_divergence_is_added_with_its_weight():
    zero, divergence = torch.zeros(2, dtype=torch.float64), torch.tensor([3.0, 5.0])
    loss = grpo_loss(zero, zero, torch.tensor([1.0, -1.0]), 0.2, divergence, 0.1)
    assert loss.tolist() == pytest.approx([-0.7, 1.5])
