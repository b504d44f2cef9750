"""ControlNets of diffusers: networks evaluated at the same x and t as the main network."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core.conditions import expand_single
from .diffusers_families import Family
from .unwrapping import describe, unwrap_network

#: The parameters of a network for the output of its ControlNet, by the class of the network.
_RESIDUALS: Mapping[str, tuple[str, ...]] = {
    'UNet2DConditionModel': ('down_block_additional_residuals', 'mid_block_additional_residual'),
    'SD3Transformer2DModel': ('block_controlnet_hidden_states',),
    'SanaTransformer2DModel': ('controlnet_block_samples',),
    'FluxTransformer2DModel': ('controlnet_block_samples', 'controlnet_single_block_samples'),
}


class ControlNet(nn.Module):
    """A ControlNet as a function from the call of its network to that call with the residuals.

    It takes the conditions of the network that its own signature names, and its own:
    `controlnet_cond` (an image, or latents for Flux and Stable Diffusion 3; a list for several
    ControlNets) and `conditioning_scale`, a number.

    Args:
        model: A ControlNet of diffusers, or several as one of its Multi classes.
        kind: The class of its network, as its family has it.
        family: The family of the network.
        main_arguments: The names that the call of the network may hold.

    Raises:
        ValueError: If networks of this class have no ControlNet, or model is not one.
    """

    def __init__(self, model: Any, kind: str, family: Family, main_arguments: set[str]) -> None:
        super().__init__()
        inner, residuals = unwrap_network(model), _RESIDUALS.get(kind)
        takes = inspect.signature(inner.forward).parameters if isinstance(inner, nn.Module) else {}
        if residuals is None or 'controlnet_cond' not in takes or 'control_type' in takes:
            raise ValueError(
                'controlnet must be a ControlNet other than ControlNetUnionModel, for one of '
                f'{", ".join(_RESIDUALS)}; got {describe(model)} for {kind}'
            )
        self.model, self.residuals, self.pack = model, residuals, family.pack
        self.takes = set(takes) - {'return_dict'}
        self.own = self.takes - main_arguments
        first = inner.nets[0] if hasattr(inner, 'nets') else inner
        self.config: Mapping[str, Any] = getattr(first, 'config', None) or {}

    def forward(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """Return a call of the network with the residuals in place of the ControlNet's conditions.

        Args:
            call: The arguments of the network by name.
        """
        own = {name: value for name, value in call.items() if name in self.own}
        call = {name: value for name, value in call.items() if name not in self.own}
        if 'controlnet_cond' not in own:
            raise TypeError(
                f'{describe(self.model)} must be given the condition controlnet_cond; '
                f'got {", ".join(own) or "none"}'
            )
        pictures = own['controlnet_cond']
        several = isinstance(pictures, (list, tuple))
        pictures = [
            self._lay_out(picture, call) for picture in (pictures if several else [pictures])
        ]
        scale = own.get('conditioning_scale', 1.0)
        if several and not isinstance(scale, (list, tuple)):
            scale = [scale] * len(pictures)
        conditions = {name: value for name, value in call.items() if name in self.takes}
        arguments = {
            **conditions,
            **own,
            'controlnet_cond': pictures if several else pictures[0],
            'conditioning_scale': scale,
        }
        if (
            self.config.get('force_zeros_for_pooled_projection')
            and 'pooled_projections' in arguments
        ):
            arguments['pooled_projections'] = torch.zeros_like(arguments['pooled_projections'])
        if 'joint_attention_dim' in self.config and self.config['joint_attention_dim'] is None:
            arguments.pop('encoder_hidden_states', None)
        return {**call, **dict(zip(self.residuals, self.model(**arguments, return_dict=False)))}

    def _lay_out(self, picture: Tensor, call: Mapping[str, Any]) -> Tensor:
        """Return an image with an entry for each item, as tokens for networks that take tokens."""
        items = next(
            len(value) for value in call.values() if isinstance(value, Tensor) and value.ndim > 2
        )
        picture = expand_single(picture, items)
        return picture if self.pack is None else self.pack(picture, dict(call), self.config)[0]
