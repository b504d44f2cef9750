"""DiffusionNFT: tuning by reward as a weighted loss on the forward process.

The equations are those of section 3 of the paper, for the estimate D of clean data in place of the
velocity. Both are linear in the output of the network, so that mixing them is equivalent.

References:
    Zheng et al. (2025), DiffusionNFT: Online Diffusion Reinforcement with Forward Process,
        arXiv:2509.16117.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: The largest absolute normalised reward: from there on r is 0 or 1.
LARGEST = 5.0
#: The lower limit of the mean absolute error that divides the loss of an item.
LEAST_ERROR = 1e-5


def normalize_rewards(rewards: Tensor, groups: Tensor, floor: float = 0.05) -> Tensor:
    """Return rewards minus the mean of their group, in units of its standard deviation.

    Args:
        rewards: [N].
        groups: The number of the group of each sample, integers [N].
        floor: The lower limit of the standard deviation, so that the noise of nearly equal rewards
            is not amplified.

    Returns:
        Advantages [N], with mean 0 in each group.
    """
    number = groups.unique(return_inverse=True)[1]
    count = torch.bincount(number).to(rewards.dtype)
    mean = torch.zeros_like(count).index_add_(0, number, rewards) / count
    centred = rewards - mean[number]
    variance = torch.zeros_like(count).index_add_(0, number, centred.square()) / count
    return centred / variance.sqrt().clamp_min(floor)[number]


def optimality(advantages: Tensor) -> Tensor:
    """Return the probability r that a sample is optimal: 1/2 + clip(A / 5, -1, 1) / 2.

    This is the paper's normalisation of raw rewards, before eq. 5.

    Args:
        advantages: A, [N].

    Returns:
        r, [N] in [0, 1].
    """
    return (advantages / LARGEST).clamp(-1, 1) / 2 + 0.5


def nft_loss(
    denoised: Tensor,
    before: Tensor,
    clean: Tensor,
    optimal: Tensor,
    strength: float = 1.0,
    reference: Tensor | None = None,
    pull: float = 0.0,
) -> Tensor:
    """Return the loss of DiffusionNFT for each item (eq. 5).

    It is r |D+ - x|^2 + (1 - r) |D- - x|^2. D+ = D_old + b (D - D_old) is the implicit positive
    policy, D- = D_old - b (D - D_old) the negative one. Its minimum is D_old + (2 / b) a
    (D_positive - D_old), a the share of optimal samples (theorem 3.2). Each square is divided by
    the mean absolute error of the item, without gradient (the paper's adaptive weighting), and the
    sum by b.

    Args:
        denoised: D of the trained network, [B, ...].
        before: D_old of the network that drew the samples, without gradient.
        clean: The samples x, [B, ...].
        optimal: r, [B] in [0, 1].
        strength: b > 0.
        reference: D of the network before tuning.
        pull: The weight of |D - D_reference|^2, divided like the rest.

    Returns:
        The losses, [B].
    """
    change = strength * (denoised - before)
    positive, weight = _squared_error(before + change, clean)
    negative, _ = _squared_error(before - change, clean)
    loss = (optimal * positive + (1 - optimal) * negative) / strength
    if reference is not None and pull:
        loss = loss + pull * (denoised - reference).square().flatten(1).mean(1) / weight
    return loss


def _squared_error(estimate: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean squared error [B] over the mean absolute error, and the latter."""
    error = (estimate - clean).flatten(1)
    weight = error.detach().abs().mean(1).clamp_min(LEAST_ERROR)
    return error.square().mean(1) / weight, weight
