"""The encoder of a config by itself, for what has no Experiment."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..config import sections_of
from ..config.latents import make_encoder, picture_frame, pictures_of
from ..encoders import LatentEncoder

__all__ = ['Decode', 'decoder_of', 'encoder_of', 'picture_frame', 'pictures_of']

Decode = Callable[[Tensor], Tensor]


def encoder_of(config: Mapping[str, Any], device: Any = 'cpu') -> LatentEncoder | None:
    """The encoder of a config, checked against its model; None where pixels are diffused."""
    return make_encoder(sections_of(config), device)


def decoder_of(config: Mapping[str, Any], device: Any = 'cpu') -> Decode | None:
    """Return the function from samples to pictures; None where samples are pictures already."""
    encoder = encoder_of(config, device)
    return None if encoder is None else encoder.decode
