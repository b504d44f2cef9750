"""Compute the training loss of a batch: noise levels, noise and conditions of each item.

All of these are functions of (seed, item) alone.
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
from ...encoders import Condition, ConditionConfig, draw_condition_masks, prepare_conditions

Conditions = Sequence[tuple[ConditionConfig, Condition]]


@dataclass(eq=False)
class Objective:
    """The loss of a denoiser as a function from a batch to [B].

    The batch contains image [B, C, H, W], item [B] (positions in the stream, which determine the
    noise), u [B] (quantiles of the density) and, if the data set has them, class_cond [B] and
    aug_cond [B, 9]. A class is replaced by the null class `num_classes` with probability
    cond_dropout_rate, which classifier-free guidance requires; so are the other conditions.
    Conditions of the batch under cond are passed on unchanged.

    Args:
        denoiser: The denoiser; its `loss` is used.
        density: The density of the noise levels.
        draws: The random numbers of an item.
        num_classes: The number of classes of the denoiser.
        cond_dropout_rate: The probability of the null class.
        memory_format: The memory format of the images.
        conditions: The conditions besides the class.
        compute: A function (denoiser, x, noise, sigma, **cond) to the loss [B], instead of the
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
        """Return clean x, noise, sigma [B] and the conditions by name of a `batch`."""
        x = batch['image'].contiguous(memory_format=self.memory_format)
        inputs = batch.get('sent') or send_together(self.make_inputs(batch), x.device)
        noise = self.draws.noise(batch['item'], x.shape[1:], x.device, inputs['item'])
        cond = dict(batch.get('cond', {}))
        if 'aug_cond' in batch:
            cond['aug_cond'] = batch['aug_cond']
        if self.num_classes:
            cond['class_cond'] = batch['class_cond'].masked_fill(
                inputs['no_class'], self.num_classes
            )
        keeps = {config.type: inputs[f'kept.{config.type}'] for config, _ in self.conditions}
        cond.update(prepare_conditions(self.conditions, batch, self.draws, keeps))
        return x, noise, inputs['sigma'].to(x.dtype), cond

    def make_inputs(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the small tensors of a `batch` that the loss needs on the device.

        They are on the host; the trainer sends them in one copy and passes them back under `sent`.
        """
        items = batch['item']
        inputs = {'item': items, 'sigma': self.density.quantile(batch['u']).float()}
        if self.num_classes:
            inputs['no_class'] = self.draws.share(items, 'class') < self.cond_dropout_rate
        keeps = draw_condition_masks(self.conditions, items, self.draws)
        return inputs | {f'kept.{name}': keep for name, keep in keeps.items()}

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
