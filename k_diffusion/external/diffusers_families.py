"""Families of diffusers' networks: known classes, and what each does otherwise than the rule."""

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
    """What a class of networks does otherwise than the general rule.

    The rule: x is [B, C, ...]; a flow's time goes from 0 (clean) to 1000 (noise); the answer is
    what the scheduler's settings say, noise - clean of a flow; the conditions, and which of them
    are needed, are read from the signature of `forward`.

    Attributes:
        time_scale: what the network's time is at the noise of a flow.
        reversed_time: its time is 0 at the noise and `time_scale` at the clean.
        rounded_time: it takes its time in the dtype of its weights alone, rounded to that.
        negated: it answers clean - noise.
        channels: the dimension of the channels.
        pack: how x is laid out for it; None where it is given as it is.
        needs: conditions that it needs although its signature has a default for them.
        own: conditions that `pack` takes beside those of the signature.
        guidance: the scale that a network with guidance_embeds is told if none is given; None where
            one must be given.
        guidance_factor: what it is told is multiplied by.
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
#: The classes that are known, with their exceptions.
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

#: Classes that are not supported, and why.
_REFUSED: Mapping[str, str] = {
    'LuminaNextDiT2DModel': 'the places of its tokens change with the time',
    'LTX2VideoTransformer3DModel': 'it denoises a video and its sound together, two tensors',
    'OmniGenTransformer2DModel': 'its prompt is a sequence of words and pictures',
    'CogView4Transformer2DModel': 'its time is that before a shift by the size of the picture',
    'MochiTransformer3DModel': 'its scheduler counts the time of its flow from the data',
    'CosmosTransformer3DModel': 'what it answers stands in its pipeline and in no setting',
    'UNet1DModel': 'its time and answer differ with its settings',
    'Transformer2DModel': 'it answers with classes of tokens, or is a part of another network',
    'StableCascadeUNet': 'its time is a ratio that its scheduler alone makes',
    'PriorTransformer': 'it makes embeddings of pictures, not pictures',
    'Kandinsky5Transformer3DModel': 'its channels stand last, and its pipeline makes the places',
    'LongCatImageTransformer2DModel': 'the places of its tokens depend on its tokenizer',
}
#: Settings (name, value) that make another kind of network, and why it is not supported.
_REFUSED_SETTINGS = (
    ('use_meanflow', True, 'it is asked for a step between two noise levels'),
    ('image_condition_type', 'token_replace', 'it is given a first frame without noise'),
)


def find_family(network: Any, held: Any = None) -> tuple[str, Family]:
    """Return the known class that a network is of or derived from, and its family.

    A network that is not of diffusers but is called like one has the family of the one network
    that it holds, `held`, or that of the rule.

    Raises:
        ValueError: it is a network of diffusers whose class is not known here, or it is not called
            as they are, or its settings make it another kind of network.
    """
    name = find_class(network, FAMILIES)
    if name is None:
        unknown, name, network = _refuse_unknown(network), find_class(held, FAMILIES), held
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
    """Return the class of a network that is called like one of diffusers, or refuse it by name."""
    name = type(network).__name__
    reason = next((_REFUSED[base] for base in class_names(network) if base in _REFUSED), None)
    if reason is not None:
        raise ValueError(f'{name} is a network of diffusers that is not supported: {reason}')
    parameters = parameters_of(network)
    if any(base.__module__.startswith('diffusers.') for base in type(network).__mro__):
        near = nearest(name, FAMILIES)
        raise ValueError(
            f'{name} is a network of diffusers that is not known here'
            f'{f"; the nearest that is known is {near}" if near else ""}. Those that '
            'are stand in docs/other_models.md; for another give a function '
            '(x, t, **cond) to K.external.FlowDenoiser or DiscreteEpsDDPMDenoiser'
        )
    takes = any(p.name == 'return_dict' or p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = [
        p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if not takes or len(named) < 2:
        raise ValueError(
            f'{name} is not called as forward(sample, timestep, ..., return_dict), as '
            'networks of diffusers are; those that are known stand in '
            'docs/other_models.md'
        )
    return name
