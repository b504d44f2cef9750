"""GRPO for diffusion: policy gradients on the steps of a stochastic sampler.

An action is the state after a step. The log-densities are sums over dimensions with the variance
included, so that the ratio is that of the two policies. The code of Flow-GRPO takes means over
dimensions, which brings the ratio closer to 1.

References:
    Shao et al. (2024), DeepSeekMath, arXiv:2402.03300 (group-relative advantages, eq. 3).
    Liu et al. (2025), Flow-GRPO, arXiv:2505.05470 (eq. 3 to 6).
"""

from __future__ import annotations

import torch
from torch import Tensor

#: The limit of the absolute difference of log-densities in a ratio.
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

    q = exp(log_prob - before) is the ratio of the densities of the drawn state under the trained
    network and under the network that drew it (Flow-GRPO, eq. 5).

    Args:
        log_prob: The log-density under the trained network, [B] in nats, with gradient.
        before: The log-density under the network that drew the samples, [B] in nats.
        advantages: A, the normalised reward of the sample of each item, [B].
        clip: c > 0.
        divergence: The Kullback-Leibler divergence of the step from the network before tuning, [B]
            in nats.
        pull: Its weight (Flow-GRPO, eq. 4 and 6).

    Returns:
        The losses, [B].
    """
    log_ratio = (log_prob - before).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    ratio = log_ratio.exp()
    advantages = advantages.to(ratio.dtype)
    loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return loss if divergence is None or not pull else loss + pull * divergence
