"""What training minimises: a batch becomes noise levels, noise and conditions, each a function
of (seed, item) alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...core.protocols import Density
from ...core.random import derive_seed, randn_items
from ...encoders import Condition, ConditionConfig, tell

Loss = Callable[[dict[str, Any]], Tensor]
Conditions = Sequence[tuple[ConditionConfig, Condition]]


@dataclass(frozen=True)
class Objective:
    """The loss of a batch, [B]: `compute` of what `prepare` makes of the batch.

    Attributes:
        prepare: A function from a batch to clean x, noise, sigma [B] and the conditions by name.
        compute: A function loss(x, noise, sigma, **cond) -> [B].
    """

    prepare: Callable[[dict[str, Any]], tuple[Tensor, Tensor, Tensor, dict[str, Any]]]
    compute: Callable[..., Tensor]

    def __call__(self, batch: dict[str, Any]) -> Tensor:
        x, noise, sigma, cond = self.prepare(batch)
        return self.compute(x, noise, sigma, **cond)


def make_loss(
    denoiser: Any,
    density: Density,
    seed: int,
    num_classes: int = 0,
    cond_dropout_rate: float = 0.0,
    memory_format: torch.memory_format = torch.contiguous_format,
    conditions: Conditions = (),
    compute: Callable[..., Tensor] | None = None,
) -> Objective:
    """The loss of a denoiser as a function from a batch to [B].

    The batch holds image [B, C, H, W], item [B] (positions in the stream, from which the noise is
    drawn), u [B] (quantiles of the density) and, as the data set has them, class_cond [B] and
    aug_cond [B, 9]. A class is replaced by the null class `num_classes` with probability
    cond_dropout_rate, which is what classifier-free guidance needs; so are the other conditions.
    What the batch holds under cond is passed on as it is. `compute(denoiser, x, noise, sigma,
    **cond)` gives the loss [B]; by default that of the denoiser.
    """

    def measure(*args: Any, **cond: Any) -> Tensor:
        each: Tensor = (
            denoiser.loss(*args, **cond) if compute is None else compute(denoiser, *args, **cond)
        )
        if each.shape != (len(args[0]),):
            raise ValueError(
                f'loss must return a value for each of the {len(args[0])} items, [B]; '
                f'got a tensor {list(each.shape)}'
            )
        return each

    def prepare(batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
        reals, items = (
            batch['image'].contiguous(memory_format=memory_format),
            batch['item'].tolist(),
        )
        noise = randn_items(
            reals.shape[1:], [derive_seed(seed, 'noise', item) for item in items], reals.device
        )
        sigma = density.quantile(batch['u']).to(reals)
        cond = {
            **batch.get('cond', {}),
            **{key: batch[key] for key in ('aug_cond',) if key in batch},
        }
        if num_classes:
            dropped = torch.tensor(
                [share(seed, 'class', item) < cond_dropout_rate for item in items],
                device=reals.device,
            )
            cond['class_cond'] = batch['class_cond'].masked_fill(dropped, num_classes)
        cond.update(tell(conditions, batch, seed, share))
        return reals, noise, sigma, cond

    return Objective(prepare, measure)


def share(seed: int, *keys: int | str) -> float:
    """A number drawn uniformly from [0, 1) for the stream named by the keys."""
    return derive_seed(seed, *keys) / 2**63
