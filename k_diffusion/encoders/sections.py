"""The config section "encoder": what is diffused, pixels or latents; read by training and
sampling alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..core.registry import Registry
from .latents import LatentEncoder, diffusers_autoencoder, own_autoencoder

#: The "type" of a config's encoder section -> its dataclass.
ENCODERS: Registry[type] = Registry('encoder type')


@ENCODERS.register('pixels')
@dataclass(kw_only=True)
class PixelsConfig:
    """Pixels: nothing is encoded."""

    type: Literal['pixels'] = 'pixels'

    def make(self, device: Any = 'cpu') -> None:
        """None: what is diffused are the pictures themselves."""
        return None


@ENCODERS.register('autoencoder')
@dataclass(kw_only=True)
class AutoencoderEncoderConfig:
    """Latents of an autoencoder trained by `k-diffusion train-autoencoder`."""

    type: Literal['autoencoder'] = 'autoencoder'
    location: str  # its .safetensors file, or the folder of its run
    mean: list[float] | None = (
        None  # of each channel of its latents over the data; training fills these in
    )
    std: list[float] | None = None

    def make(self, device: Any = 'cpu') -> LatentEncoder:
        """The encoder, without gradients to its weights."""
        return LatentEncoder(own_autoencoder(self.location), self.mean, self.std).to(device)


@ENCODERS.register('diffusers')
@dataclass(kw_only=True)
class DiffusersEncoderConfig:
    """Latents of an AutoencoderKL of diffusers (Stable Diffusion's, say)."""

    type: Literal['diffusers'] = 'diffusers'
    location: str  # the folder that save_pretrained wrote, or that of a pipeline
    mean: list[float] | None = None
    std: list[float] | None = None

    def make(self, device: Any = 'cpu') -> LatentEncoder:
        """The encoder, without gradients to its weights."""
        return LatentEncoder(diffusers_autoencoder(self.location), self.mean, self.std).to(device)
