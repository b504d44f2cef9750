"""The config section "encoder", pixels or latents, for training and sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..core.registry import Registry
from .latents import LatentEncoder, diffusers_autoencoder, own_autoencoder

#: The dataclass of an encoder section by its "type".
ENCODERS: Registry[type] = Registry('encoder type')


@ENCODERS.register('pixels')
@dataclass(kw_only=True)
class PixelsConfig:
    """Pixels without an encoder."""

    type: Literal['pixels'] = 'pixels'

    def make(self, device: Any = 'cpu') -> None:
        """Return None: the images themselves are diffused.

        Args:
            device: Ignored.
        """
        return None


@ENCODERS.register('autoencoder')
@dataclass(kw_only=True)
class AutoencoderEncoderConfig:
    """Latents of an autoencoder trained by `k-diffusion train-autoencoder`.

    Attributes:
        location: Its .safetensors file, or the folder of its run.
        mean: The mean of each channel of its latents over the data; training fills it in.
        std: Their standard deviation.
    """

    type: Literal['autoencoder'] = 'autoencoder'
    location: str
    mean: list[float] | None = None
    std: list[float] | None = None

    def make(self, device: Any = 'cpu') -> LatentEncoder:
        """Return the encoder, without gradients of its weights.

        Args:
            device: The device.
        """
        return LatentEncoder(own_autoencoder(self.location), self.mean, self.std).to(device)


@ENCODERS.register('diffusers')
@dataclass(kw_only=True)
class DiffusersEncoderConfig:
    """Latents of a diffusers AutoencoderKL, such as that of Stable Diffusion.

    Attributes:
        location: A folder that save_pretrained wrote, or that of a pipeline.
        mean: The mean of each channel of its latents over the data; training fills it in.
        std: Their standard deviation.
    """

    type: Literal['diffusers'] = 'diffusers'
    location: str
    mean: list[float] | None = None
    std: list[float] | None = None

    def make(self, device: Any = 'cpu') -> LatentEncoder:
        """Return the encoder, without gradients of its weights.

        Args:
            device: The device.
        """
        return LatentEncoder(diffusers_autoencoder(self.location), self.mean, self.std).to(device)
