"""Composition of several prompts, each with a weight and optionally a place in the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.arguments import show_value
from ..core.conditions import NullRows, map_leaves
from ..core.protocols import DenoiseFn, GuidedFn
from ..core.wrapping import DenoiserWrapper, select_like_x
from .streams import Null, ask_all, check_null, without


def composed(
    denoise: DenoiseFn,
    null: Null,
    prompts: Sequence[Mapping[str, Any]],
    weights: Sequence[float | Tensor],
    joined: bool = True,
) -> GuidedFn:
    """Combine prompts: D' = D_u + sum of w_i (D(x | prompt_i) - D_u) with D_u = D(x | null).

    One prompt of weight 1 is that prompt alone. `pair` returns (D', D_u).

    Args:
        denoise: The denoiser.
        null: The conditions that are removed in D_u, with their replacements, as in
            `classifier_free`. A condition that a call omits is taken from null alone; there a
            leading dimension of 1 is that of the batch, [1, 77, 768] from a text encoder for
            example.
        prompts: Conditions to replace: a value for every item, or a tensor of the shape of an item.
            Other conditions of the call are kept.
        weights: A weight for each prompt: a number, negative to avoid the prompt, or a map that
            broadcasts against an item, [H, W] for example.
        joined: Evaluate all estimates in one call on a larger batch.

    Returns:
        The guided denoiser.

    Raises:
        ValueError: If prompts, weights and null do not fit each other.

    References:
        Liu et al. (2022), arXiv:2206.01714, eq. 11.
    """
    check_null(null)
    for prompt in prompts:
        if not isinstance(prompt, Mapping):
            raise TypeError(f'prompts must be dicts of conditions; got {show_value(prompt)}')
    if not prompts or len(prompts) != len(weights):
        raise ValueError(
            'weights must hold a number or a map for each of at least one prompt; got '
            f'{len(weights)} weights for {len(prompts)} prompts'
        )
    odd = [i for i, prompt in enumerate(prompts) if prompt.keys() != null.keys()]
    if odd:
        raise ValueError(
            f'prompts must name the conditions of null, {sorted(null)}; prompt {odd[0]} has '
            f'{sorted(prompts[odd[0]])}'
        )
    return _Composed(denoise, null, prompts, weights, joined)


@dataclass(frozen=True)
class _Composed(DenoiserWrapper):
    denoise: DenoiseFn
    null: Null
    prompts: Sequence[Null]
    weights: Sequence[float | Tensor]
    joined: bool
    per_item = ('weights', 'null', 'prompts')

    def select_field(self, name: str, value: Any, items: Tensor, shape: Sequence[int]) -> Any:
        if name == 'null':
            return NullRows(value, items, shape[0])
        if name == 'prompts':
            return [NullRows(prompt, items, shape[0]) for prompt in value]
        weights = [select_like_x(weight, items, shape) for weight in value]
        return value if all(a is b for a, b in zip(weights, value)) else weights

    def __call__(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        weight = self.weights[0]
        if len(self.prompts) == 1 and not isinstance(weight, Tensor) and weight == 1:
            return self.denoise(
                x, sigma, **without(self._name_conditions(x, cond), self.prompts[0], len(x))
            )
        return self.pair(x, sigma, **cond)[0]

    def pair(self, x: Tensor, sigma: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        cond = self._name_conditions(x, cond)
        uncond, *each = ask_all(
            self.denoise,
            x,
            sigma,
            [without(cond, prompt, len(x)) for prompt in (self.null, *self.prompts)],
            self.joined,
        )
        guided = uncond
        for weight, denoised in zip(self.weights, each):
            guided = guided + (weight.to(x) if isinstance(weight, Tensor) else weight) * (
                denoised - uncond
            )
        return guided, uncond

    def _name_conditions(self, x: Tensor, cond: dict[str, Any]) -> dict[str, Any]:
        """Return the conditions, adding those that the caller left to the prompts."""
        missing = {key: value for key, value in self.null.items() if key not in cond}
        return {**map_leaves(lambda value: _one_each(value, len(x), x.device), missing), **cond}


def _one_each(value: Any, n: int, device: torch.device) -> Any:
    if value is None or isinstance(value, str):
        return value
    value = torch.as_tensor(value, device=device)
    if value.ndim > 1 and len(value) == 1:  # the shape of a text encoder's output
        value = value[0]
    return value.expand(n, *value.shape)
