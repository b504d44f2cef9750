"""A diffusers network as a function (x, t, **cond), by a rule and the exceptions of its family."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core.conditions import expand_single
from .diffusers_controlnet import ControlNet
from .diffusers_families import find_family
from .unwrapping import describe, inner_module, parameters_of, unwrap_network

#: Conditions that belong into added_cond_kwargs, for networks that take it.
_ADDED = ('text_embeds', 'time_ids', 'image_embeds', 'hint', 'resolution', 'aspect_ratio')
#: Conditions required by kinds of networks, by a setting and its value.
_ADDED_BY_SETTING: Mapping[tuple[str, Any], tuple[str, ...]] = {
    ('addition_embed_type', 'text_time'): ('text_embeds', 'time_ids'),
    ('addition_embed_type', 'image'): ('image_embeds',),
    ('use_additional_conditions', True): ('resolution', 'aspect_ratio'),
}
#: Conditions that are one tensor.
_TENSORS = ('encoder_hidden_states', 'pooled_projections', 'class_labels', *_ADDED[:2])
#: Conditions without a batch dimension: positions of tokens, and arguments of attention.
_UNBATCHED = (
    'img_ids',
    'txt_ids',
    'image_rotary_emb',
    'rope_interpolation_scale',
    'attention_kwargs',
    'cross_attention_kwargs',
    'joint_attention_kwargs',
)
#: Names that DiffusersNetwork sets itself; they are not conditions of a network's forward.
_OWN = ('timestep', 'return_dict')


class DiffusersNetwork(nn.Module):
    """A diffusers model as a function (x, t, **cond) -> prediction, without a predicted variance.

    The family is that of the network inside torch.compile, DistributedDataParallel or PEFT, or of a
    base class of it. A ControlNet is evaluated at the same x and t, with the conditions
    `controlnet_cond` and `conditioning_scale`.

    Args:
        model: A diffusers network, or one with the same calling convention.
        controlnet: A ControlNet of diffusers for it, or several as a MultiControlNetModel.

    Raises:
        ValueError: If its family, or a ControlNet for it, is unknown.
    """

    def __init__(self, model: Any, controlnet: Any = None) -> None:
        super().__init__()
        self.model = model
        network = unwrap_network(model)
        inner = unwrap_network(inner_module(network))  # inside a custom wrapper
        self.kind, self.family = find_family(network, inner)
        configs = (getattr(part, 'config', None) for part in (network, inner))
        self.config: Mapping[str, Any] = next(
            (config for config in configs if isinstance(config, Mapping)), {}
        )
        self.channels = self.family.channels
        #: True for a network of its own class, whose settings describe its arguments.
        self.exact = type(network).__name__ == self.kind
        #: The conditions it takes; None for any.
        self.condition_names: set[str] | None = None
        #: Factor of a flow time in [0, 1].
        self.flow_time_scale = self.family.time_scale * self.config.get('timestep_scale', 1.0)
        parameters = parameters_of(network)
        self._read_signature(parameters, {*parameters, *parameters_of(inner)})
        self.controlnet: ControlNet | None = None
        if controlnet is not None:
            main_arguments = {*self.conditions, self.input, self.time}
            self.controlnet = ControlNet(controlnet, self.kind, self.family, main_arguments)
            if self.condition_names is not None:
                self.condition_names = {*self.condition_names, *self.controlnet.own}

    def _read_signature(
        self, parameters: Mapping[str, inspect.Parameter], names: Collection[str]
    ) -> None:
        """Read the names of x and t in the forward, and the conditions it takes and requires.

        Args:
            parameters: Those of the forward that is called.
            names: These, and those of the forward of the network inside a wrapper.
        """
        self.input, second = list(parameters)[:2]
        self.time = 'timestep' if 'timestep' in parameters else second
        self.conditions = {
            name: p for name, p in parameters.items() if name not in (*_OWN, self.input, self.time)
        }
        by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        any_name = any(p.kind is p.VAR_KEYWORD for p in self.conditions.values())
        self.condition_names = None if any_name else {*self.conditions, *self.family.own}
        required = [
            name
            for name, p in self.conditions.items()
            if p.kind in by_name and p.default is p.empty
        ]
        self.needed = [*required, *self.family.needs]
        self.takes_added = 'added_cond_kwargs' in names
        self.tells_guidance = 'guidance' in names and self.config.get('guidance_embeds')
        if self.tells_guidance and self.family.guidance is None:
            self.needed.append('guidance')

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        unet_cond: Tensor | None = None,
        class_cond: Tensor | None = None,
        **cond: Any,
    ) -> Tensor:
        """Return the prediction for x at the times t.

        Args:
            x: The batch, [B, C, ...].
            t: The times, [B].
            unet_cond: Channels concatenated to x.
            class_cond: Class labels, [B].
            **cond: Further conditions of the network's forward.
        """
        width = x.shape[self.channels] if x.ndim > self.channels else 0
        if unet_cond is not None:
            x = torch.cat([x, expand_single(unet_cond, len(x))], self.channels)
        if class_cond is not None:
            labels = torch.as_tensor(class_cond, device=x.device)
            cond['class_labels'] = labels.expand(len(x)) if labels.ndim == 0 else labels
        self._check_channels(x)
        cond = self._arrange_conditions(cond, x)
        inputs, unpack = x, None
        if self.family.pack is not None:
            inputs, unpack = self.family.pack(x, cond, self.config)
        if self.family.reversed_time:
            t = self.family.time_scale - t
        if self.family.rounded_time:
            t = t.to(x.dtype)
        call = {self.input: inputs, self.time: t, **cond}
        if self.controlnet is not None:
            call = self.controlnet(call)
        answer = self.model(**call, return_dict=False)
        if not isinstance(answer, Tensor):
            answer = next(iter(answer.values() if isinstance(answer, Mapping) else answer))
        answer = answer if unpack is None else unpack(answer)
        if answer.shape[self.channels] > width:  # the rest is a variance
            answer = answer.narrow(self.channels, 0, width)
        return -answer if self.family.negated else answer

    def _arrange_conditions(self, cond: dict[str, Any], x: Tensor) -> dict[str, Any]:
        """Return the conditions in the form of the network's forward, one entry for each item."""
        self._check_conditions(cond, len(x))
        extra = {key: cond.pop(key) for key in _ADDED if self.takes_added and key in cond}
        if extra:
            cond['added_cond_kwargs'] = {**(cond.get('added_cond_kwargs') or {}), **extra}
        guidance: Any = self.family.guidance
        if 'guidance_embeds' in self.config:
            guidance = cond.pop('guidance', guidance)
        if self.tells_guidance:
            if not isinstance(guidance, Tensor):
                guidance = torch.full((len(x),), guidance, device=x.device)
            cond['guidance'] = guidance.float().expand(len(x)) * self.family.guidance_factor
        return {
            name: value if name in _UNBATCHED else expand_single(value, len(x))
            for name, value in cond.items()
        }

    def _check_channels(self, x: Tensor) -> None:
        in_channels = None if self.family.pack else self.config.get('in_channels')
        if not isinstance(in_channels, int) or x.ndim <= self.channels:
            return
        if x.shape[self.channels] != in_channels:
            raise ValueError(
                f'x must have {in_channels} channels for this {self.kind}, including those of '
                f'unet_cond; got {x.shape[self.channels]}'
            )

    def _check_conditions(self, cond: Mapping[str, Any], n: int) -> None:
        extra_names = [
            name
            for (setting, value), names in _ADDED_BY_SETTING.items()
            for name in names
            if self.takes_added and self.config.get(setting) == value
        ]
        conditions = {**cond, **(cond.get('added_cond_kwargs') or {})}
        missing = [name for name in (*self.needed, *extra_names) if name not in conditions]
        if missing:
            raise TypeError(
                f'{self.kind} must be given the condition {missing[0]!r}; got '
                f'{", ".join(map(repr, cond)) or "none"}'
            )
        for name in (name for name in _TENSORS if conditions.get(name) is not None):
            if not isinstance(conditions[name], Tensor):
                raise TypeError(
                    f'{name} must be a tensor with an entry for each item; '
                    f'got {describe(conditions[name])}'
                )
            if conditions[name].ndim < 1 or len(conditions[name]) not in (1, n):
                raise ValueError(
                    f'{name} must have 1 entry or one for each of the {n} items; '
                    f'got the shape {list(conditions[name].shape)}'
                )
        if self.exact and self.kind.startswith('UNet'):
            self._check_ranges(conditions)
        own = _ADDED if self.takes_added else ()
        names = cond if self.condition_names is None else (*self.condition_names, *own)
        unknown = [name for name in cond if name not in names]
        if unknown:
            raise TypeError(
                f'{self.kind} takes no condition {unknown[0]!r}; it takes '
                f'{", ".join(sorted(self.condition_names or ()))}'
            )

    def _check_ranges(self, conditions: Mapping[str, Any]) -> None:
        """Check the classes and the width of the text of a U-Net against its settings."""
        labels, classes = conditions.get('class_labels'), self.config.get('num_class_embeds')
        classes = None if self.config.get('class_embed_type') is not None else classes
        # a look at the classes would wait for a GPU
        if isinstance(labels, Tensor) and labels.is_cpu and labels.numel() and classes is not None:
            low, high = (int(value) for value in labels.aminmax())
            if low < 0 or high >= classes:
                raise ValueError(
                    f'class_cond must be between 0 and {classes - 1}, the classes of this '
                    f'{self.kind}; got {low if low < 0 else high}'
                )
        text, width = (
            conditions.get('encoder_hidden_states'),
            self.config.get('cross_attention_dim'),
        )
        if not isinstance(text, Tensor) or not isinstance(width, int):
            return
        if self.config.get('encoder_hid_dim_type') is None and text.shape[-1] != width:
            raise ValueError(
                f'encoder_hidden_states must have the width {width} of the text encoder of this '
                f'{self.kind}; got the shape {list(text.shape)}'
            )
