"""What is diffused in place of pixels: latents of an autoencoder, brought to mean 0 and standard
deviation 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..core.extras import require
from ..core.hub import hub_fault
from ..core.weights import load_safetensors, load_safetensors_config
from ..models import AutoencoderConfig


class Encoder(Protocol):
    """From pictures [B, C, H, W] in [-1, 1] to what is diffused, and back."""

    #: How many times smaller a side becomes, and the channels of pictures and of what is diffused.
    factor: int
    input_channels: int
    latent_channels: int

    def encode(self, x: Tensor) -> Tensor: ...

    def decode(self, z: Tensor) -> Tensor: ...


class LatentEncoder(nn.Module):
    """An autoencoder as an Encoder: z = (its mean latent - mean) / std, a number per channel each.

    network: `encode` gives (mean, log variance), `decode` pictures; factor, input_channels and
    latent_channels are its own.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: Any, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.factor, self.input_channels, self.latent_channels = (
            network.factor,
            network.input_channels,
            network.latent_channels,
        )
        self.set_statistics(
            mean or [0.0] * self.latent_channels, std or [1.0] * self.latent_channels
        )

    def set_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Takes the mean and the standard deviation of each channel of the network's own
        latents.
        """
        if len(mean) != self.latent_channels or len(std) != self.latent_channels or min(std) <= 0:
            raise ValueError(
                f'the statistics are {list(mean)} and {list(std)}; give one mean and one std '
                'above 0 for each of '
                f'{self.latent_channels} channels'
            )
        device = self.mean.device if hasattr(self, 'mean') else None
        self.register_buffer(
            'mean', torch.tensor(mean, dtype=torch.float32, device=device).view(-1, 1, 1)
        )
        self.register_buffer(
            'std', torch.tensor(std, dtype=torch.float32, device=device).view(-1, 1, 1)
        )

    def encode(self, x: Tensor) -> Tensor:
        """Pictures [B, C, H, W] in [-1, 1] -> latents [B, c, H / f, W / f], always the same
        ones.
        """
        return (self.network.encode(x)[0] - self.mean) / self.std

    def decode(self, z: Tensor) -> Tensor:
        """Latents -> pictures, about in [-1, 1]; gradients flow."""
        return self.network.decode(z * self.std + self.mean)


class DiffusersAutoencoder(nn.Module):
    """An AutoencoderKL of diffusers with the methods of our own autoencoder."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        config = model.config
        self.factor = 2 ** (len(config['block_out_channels']) - 1)
        self.input_channels, self.latent_channels = config['in_channels'], config['latent_channels']

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, log variance) of the latents, unscaled."""
        found = self.model.encode(x.to(self.model.dtype)).latent_dist
        return found.mean.to(x.dtype), found.logvar.to(x.dtype)

    def decode(self, z: Tensor) -> Tensor:
        return self.model.decode(z.to(self.model.dtype)).sample.to(z.dtype)


def own_autoencoder(location: str) -> nn.Module:
    """The autoencoder that `k-diffusion train-autoencoder` wrote: its .safetensors file, or the
    folder of its run.
    """
    path = Path(location).expanduser()
    if path.is_dir():
        found = sorted(path.glob('*.safetensors'))
        if len(found) != 1:
            raise ValueError(
                f'{path} holds {len(found)} .safetensors files; name the one of the autoencoder'
            )
        path = found[0]
    config = load_safetensors_config(path)
    if config.get('model', {}).get('type') != 'autoencoder':
        raise ValueError(
            f'{path} is not an autoencoder; train one with k-diffusion train-autoencoder'
        )
    section = {key: value for key, value in config['model'].items() if key != 'type'}
    network = AutoencoderConfig(**section).build()
    network.load_state_dict(load_safetensors(path))
    return network.eval().requires_grad_(False)


def diffusers_autoencoder(location: str) -> DiffusersAutoencoder:
    """The AutoencoderKL in a folder: its own, or the folder `vae` of a pipeline."""
    diffusers = require('diffusers', 'diffusers', 'an autoencoder of diffusers')
    path = Path(location).expanduser()
    path = path / 'vae' if (path / 'vae').is_dir() else path
    fault = hub_fault(path)
    try:
        model = diffusers.AutoencoderKL.from_pretrained(
            str(path) if path.is_dir() else location, local_files_only=fault is not None
        )
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f'no AutoencoderKL can be loaded from {location} '
            f'({str(error).splitlines()[0][:120]}); give the folder '
            'that save_pretrained wrote'
        ) from None
    return DiffusersAutoencoder(model.eval().requires_grad_(False))
