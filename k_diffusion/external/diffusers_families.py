"""Families of diffusers networks: the known classes, and their exceptions from the general rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..core.registry import nearest
from .diffusers_tokens import (
    Unpack,
    pack_chroma,
    pack_cogvideo,
    pack_flux,
    pack_flux2,
    pack_list,
    pack_ltx,
    pack_ovis,
    pack_qwen,
)
from .unwrapping import class_names, find_class, parameters_of


@dataclass(frozen=True)
class Family:
    """The exceptions of a class of networks from the general rule.

    The rule: x is [B, C, ...]; the time of a flow goes from 0 (clean) to 1000 (noise); the output
    is what the settings of the scheduler say, noise - clean for a flow; the conditions, and which
    of them are required, are read from the signature of `forward`.

    Attributes:
        time_scale: The time of the network at the noise end of a flow.
        reversed_time: The time is 0 at the noise end and `time_scale` at the clean end.
        rounded_time: The network takes its time in the dtype of its weights only, rounded to it.
        negated: The output is clean - noise.
        channels: The dimension of the channels.
        pack: The layout of x for the network; None for x as it is.
        needs: Required conditions that have a default in the signature.
        own: Conditions of `pack` besides those of the signature.
        guidance: The scale passed to a network with guidance_embeds if none is given; None if one
            must be given.
        guidance_factor: Factor of the scale.
    """

    time_scale: float = 1000.0
    reversed_time: bool = False
    rounded_time: bool = False
    negated: bool = False
    channels: int = 1
    pack: Callable[[Any, dict[str, Any], Mapping[str, Any]], tuple[Any, Unpack]] | None = None
    needs: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    guidance: float | None = None
    guidance_factor: float = 1.0


_TEXT = ('encoder_hidden_states',)
#: The known classes with their exceptions.
FAMILIES: Mapping[str, Family] = {
    'UNet2DModel': Family(),
    'UNet2DConditionModel': Family(),
    'UNet3DConditionModel': Family(),
    'UNetSpatioTemporalConditionModel': Family(channels=2),
    'DiTTransformer2DModel': Family(),
    'PixArtTransformer2DModel': Family(needs=_TEXT),
    'SanaTransformer2DModel': Family(),
    'SanaVideoTransformer3DModel': Family(),
    'SD3Transformer2DModel': Family(needs=(*_TEXT, 'pooled_projections')),
    'AuraFlowTransformer2DModel': Family(time_scale=1.0, needs=_TEXT),
    'PRXTransformer2DModel': Family(time_scale=1.0),
    'Lumina2Transformer2DModel': Family(time_scale=1.0, reversed_time=True, negated=True),
    'ZImageTransformer2DModel': Family(
        time_scale=1.0, reversed_time=True, negated=True, pack=pack_list, own=('cap_mask',)
    ),
    'HiDreamImageTransformer2DModel': Family(
        negated=True,
        needs=('encoder_hidden_states_t5', 'encoder_hidden_states_llama3', 'pooled_embeds'),
    ),
    'HunyuanImageTransformer2DModel': Family(rounded_time=True),
    'FluxTransformer2DModel': Family(
        time_scale=1.0, pack=pack_flux, guidance=3.5, needs=(*_TEXT, 'pooled_projections')
    ),
    'OvisImageTransformer2DModel': Family(time_scale=1.0, pack=pack_ovis, needs=_TEXT),
    'BriaTransformer2DModel': Family(pack=pack_flux, needs=_TEXT),
    'ChromaTransformer2DModel': Family(time_scale=1.0, pack=pack_chroma, needs=_TEXT),
    'Flux2Transformer2DModel': Family(time_scale=1.0, pack=pack_flux2, guidance=4.0, needs=_TEXT),
    'QwenImageTransformer2DModel': Family(time_scale=1.0, pack=pack_qwen, needs=_TEXT),
    'WanTransformer3DModel': Family(),
    'SkyReelsV2Transformer3DModel': Family(),
    'LTXVideoTransformer3DModel': Family(pack=pack_ltx),
    'CogVideoXTransformer3DModel': Family(channels=2, pack=pack_cogvideo),
    'HunyuanVideoTransformer3DModel': Family(guidance=6.0, guidance_factor=1000.0),
    'HunyuanVideo15Transformer3DModel': Family(rounded_time=True),
}

#: Unsupported classes, and the reason.
_REFUSED: Mapping[str, str] = {
    'LuminaNextDiT2DModel': 'the positions of its tokens change with the time',
    'LTX2VideoTransformer3DModel': 'it denoises a video and its sound together, two tensors',
    'OmniGenTransformer2DModel': 'its prompt is a sequence of words and images',
    'CogView4Transformer2DModel': 'its time is that before a shift by the size of the image',
    'MochiTransformer3DModel': 'its scheduler counts the time of its flow from the data',
    'CosmosTransformer3DModel': 'its prediction is defined in its pipeline and not in a setting',
    'UNet1DModel': 'its time and prediction differ with its settings',
    'Transformer2DModel': 'it predicts classes of tokens, or is a part of another network',
    'StableCascadeUNet': 'its time is a ratio that only its scheduler computes',
    'PriorTransformer': 'it makes embeddings of images, not images',
    'Kandinsky5Transformer3DModel': 'its channels are last, and its pipeline makes the positions',
    'LongCatImageTransformer2DModel': 'the positions of its tokens depend on its tokenizer',
}
#: Settings (name, value) that make another kind of network, and why it is unsupported.
_REFUSED_SETTINGS = (
    ('use_meanflow', True, 'it takes a step between two noise levels'),
    ('image_condition_type', 'token_replace', 'it takes a first frame without noise'),
)


def find_family(network: Any, inner: Any = None) -> tuple[str, Family]:
    """Return the known class of a network, or of its base classes, and its family.

    A network outside diffusers with the same calling convention has the family of the one network
    that it holds, `inner`, or that of the rule.

    Args:
        network: The network.
        inner: The network inside it, if there is one.

    Raises:
        ValueError: If it is an unknown diffusers network, has another calling convention, or its
            settings make it another kind of network.
    """
    name = find_class(network, FAMILIES)
    if name is None:
        unknown, name, network = _refuse_unknown(network), find_class(inner, FAMILIES), inner
        if name is None:
            return unknown, Family()
    config = getattr(network, 'config', None) or {}
    reason = next(
        (reason for setting, value, reason in _REFUSED_SETTINGS if config.get(setting) == value),
        None,
    )
    if reason is not None:
        raise ValueError(f'{type(network).__name__} with these settings is not supported: {reason}')
    return name, FAMILIES[name]


def _refuse_unknown(network: Any) -> str:
    """Return the class of a network with diffusers' calling convention, or raise a ValueError."""
    name = type(network).__name__
    reason = next((_REFUSED[base] for base in class_names(network) if base in _REFUSED), None)
    if reason is not None:
        raise ValueError(f'{name} is a diffusers network that is not supported: {reason}')
    parameters = parameters_of(network)
    if any(base.__module__.startswith('diffusers.') for base in type(network).__mro__):
        near = nearest(name, FAMILIES)
        raise ValueError(
            f'{name} is a diffusers network that is not known here'
            f'{f"; the nearest known one is {near}" if near else ""}. The known '
            'ones are listed in docs/other_models.md; for another pass a function '
            '(x, t, **cond) to K.external.FlowDenoiser or DiscreteEpsDDPMDenoiser'
        )
    takes = any(p.name == 'return_dict' or p.kind is p.VAR_KEYWORD for p in parameters.values())
    kinds = [
        p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if not takes or len(kinds) < 2:
        raise ValueError(
            f'{name} must be called as forward(sample, timestep, ..., return_dict), like '
            'diffusers networks; the known ones are listed in docs/other_models.md'
        )
    return name
