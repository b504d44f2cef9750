"""What training minimises: a batch becomes noise levels, noise and conditions, each a function
of (seed, item) alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from ...core.devices import send_together
from ...core.draws import Draws
from ...core.protocols import Density
from ...encoders import Condition, ConditionConfig, draw_kept, prepare_conditions

Conditions = Sequence[tuple[ConditionConfig, Condition]]


@dataclass(eq=False)
class Objective:
    """The loss of a denoiser as a function from a batch to [B].

    The batch holds image [B, C, H, W], item [B] (positions in the stream, from which the noise is
    drawn), u [B] (quantiles of the density) and, as the data set has them, class_cond [B] and
    aug_cond [B, 9]. A class is replaced by the null class `num_classes` with probability
    cond_dropout_rate, which is what classifier-free guidance needs; so are the other conditions.
    Other conditions, which the batch holds under cond, are passed on as they are.

    Args:
        denoiser: Its `loss` is taken.
        density: Of the noise levels.
        draws: What is drawn for an item.
        num_classes: How many classes the denoiser is told of.
        cond_dropout_rate: How often it is not told of the class.
        memory_format: Of the images.
        conditions: What else it is told of.
        compute: A function (denoiser, x, noise, sigma, **cond) to the loss [B], in place of the
            denoiser's.
    """

    denoiser: Any
    density: Density
    draws: Draws
    _: KW_ONLY
    num_classes: int = 0
    cond_dropout_rate: float = 0.0
    memory_format: torch.memory_format = torch.contiguous_format
    conditions: Conditions = ()
    compute: Callable[..., Tensor] | None = None

    def __call__(self, batch: dict[str, Any]) -> Tensor:
        x, noise, sigma, cond = self.prepare(batch)
        return self._measure(x, noise, sigma, cond)

    def prepare(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
        """Return clean x, noise, sigma [B] and the conditions by name, of a batch."""
        x = batch['image'].contiguous(memory_format=self.memory_format)
        sent = batch.get('sent') or send_together(self.make_inputs(batch), x.device)
        noise = self.draws.noise(batch['item'], x.shape[1:], x.device, sent['item'])
        cond = dict(batch.get('cond', {}))
        if 'aug_cond' in batch:
            cond['aug_cond'] = batch['aug_cond']
        if self.num_classes:
            cond['class_cond'] = batch['class_cond'].masked_fill(sent['no_class'], self.num_classes)
        kept = {config.type: sent[f'kept.{config.type}'] for config, _ in self.conditions}
        cond.update(prepare_conditions(self.conditions, batch, self.draws, kept))
        return x, noise, sent['sigma'].to(x.dtype), cond

    def make_inputs(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return what the loss needs on the device of what the host draws: small tensors on the
        host, which the trainer sends by one copy and gives back under `sent`.
        """
        items = batch['item']
        inputs = {'item': items, 'sigma': self.density.quantile(batch['u']).float()}
        if self.num_classes:
            inputs['no_class'] = self.draws.share(items, 'class') < self.cond_dropout_rate
        kept = draw_kept(self.conditions, items, self.draws)
        return inputs | {f'kept.{name}': told for name, told in kept.items()}

    def _measure(self, x: Tensor, noise: Tensor, sigma: Tensor, cond: dict[str, Any]) -> Tensor:
        each: Tensor = (
            self.denoiser.loss(x, noise, sigma, **cond)
            if self.compute is None
            else self.compute(self.denoiser, x, noise, sigma, **cond)
        )
        if each.shape != (len(x),):
            raise ValueError(
                f'loss must return a value for each of the {len(x)} items, [B]; '
                f'got a tensor {list(each.shape)}'
            )
        return each
