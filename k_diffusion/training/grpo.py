"""GRPO for diffusion: policy gradients on the steps of a stochastic sampler.

Shao et al. (2024), DeepSeekMath, arXiv:2402.03300 (group-relative advantages, eq. 3), in the form
of Liu et al. (2025), Flow-GRPO, arXiv:2505.05470 (eq. 3 to 6): an action is the state after a step.
Here the log-densities are sums over dimensions with the variance included, so that the ratio is
that of the two policies; Flow-GRPO's code takes means over dimensions, which tempers it.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: The largest absolute difference of log-densities that is turned into a ratio.
LARGEST_LOG_RATIO = 20.0


def grpo_loss(
    log_prob: Tensor,
    before: Tensor,
    advantages: Tensor,
    clip: float = 0.2,
    divergence: Tensor | None = None,
    pull: float = 0.0,
) -> Tensor:
    """Return the clipped loss of a step for each item: -min(q A, clip(q, 1 - c, 1 + c) A).

    q = exp(log_prob - before) is the ratio of the densities of the state that was drawn, by the
    network that learns and by the one that drew it (Flow-GRPO, eq. 5).

    Args:
        log_prob: [B] in nats, with gradient.
        before: That of the network that drew the samples, [B].
        advantages: A, the normalised reward of the item's sample, [B].
        clip: c > 0.
        divergence: The Kullback-Leibler divergence of the step from the network before tuning, [B]
            in nats.
        pull: Its weight (Flow-GRPO, eq. 4 and 6).

    Returns:
        [B].
    """
    log_ratio = (log_prob - before).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    ratio = log_ratio.exp()
    advantages = advantages.to(ratio.dtype)
    loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return loss if divergence is None or not pull else loss + pull * divergence
