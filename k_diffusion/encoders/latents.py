"""Latents of an autoencoder, scaled to mean 0 and standard deviation 1."""

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
    """Converts images [B, C, H, W] in [-1, 1] to the diffused tensors, and back."""

    #: Reduction of a side, and the channels of images and latents.
    factor: int
    input_channels: int
    latent_channels: int

    def encode(self, x: Tensor) -> Tensor:
        """Return the latents of images x [B, C, H, W] in [-1, 1]."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Return the images [B, C, H, W] of latents z."""
        ...


class LatentEncoder(nn.Module):
    """An autoencoder as an Encoder: z = (mean latent - mean) / std, with numbers per channel.

    Args:
        network: `encode` returns (mean, log variance), `decode` images; it has factor,
            input_channels and latent_channels.
        mean: The mean of each channel of its latents.
        std: Their standard deviation.
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
        """Set the statistics of the network's own latents.

        Args:
            mean: The mean of each channel.
            std: The standard deviation of each channel.

        Raises:
            ValueError: Unless there is a mean and a std > 0 for each channel.
        """
        if len(mean) != self.latent_channels or len(std) != self.latent_channels or min(std) <= 0:
            raise ValueError(
                f'mean and std must hold a number for each of {self.latent_channels} channels, std '
                '> 0; '
                f'got {list(mean)} and {list(std)}'
            )
        device = self.mean.device if hasattr(self, 'mean') else None
        self.register_buffer(
            'mean', torch.tensor(mean, dtype=torch.float32, device=device).view(-1, 1, 1)
        )
        self.register_buffer(
            'std', torch.tensor(std, dtype=torch.float32, device=device).view(-1, 1, 1)
        )

    def encode(self, x: Tensor) -> Tensor:
        """Return the latents [B, c, H / f, W / f] of images; the same images give the same latents.

        Args:
            x: Images [B, C, H, W] in [-1, 1].
        """
        return (self.network.encode(x)[0] - self.mean) / self.std

    def decode(self, z: Tensor) -> Tensor:
        """Return images, about in [-1, 1], with gradients.

        Args:
            z: Latents [B, c, h, w].
        """
        return self.network.decode(z * self.std + self.mean)


class DiffusersAutoencoder(nn.Module):
    """A diffusers AutoencoderKL with the methods of this project's autoencoder.

    Args:
        model: The AutoencoderKL.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        config = model.config
        self.factor = 2 ** (len(config['block_out_channels']) - 1)
        self.input_channels, self.latent_channels = config['in_channels'], config['latent_channels']

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of the latents, unscaled.

        Args:
            x: Images [B, C, H, W] in [-1, 1].
        """
        distribution = self.model.encode(x.to(self.model.dtype)).latent_dist
        return distribution.mean.to(x.dtype), distribution.logvar.to(x.dtype)

    def decode(self, z: Tensor) -> Tensor:
        """Return images of unscaled latents.

        Args:
            z: Latents [B, c, h, w].
        """
        return self.model.decode(z.to(self.model.dtype)).sample.to(z.dtype)


def own_autoencoder(location: str) -> nn.Module:
    """Load an autoencoder that `k-diffusion train-autoencoder` wrote.

    Args:
        location: Its .safetensors file, or the folder of its run.

    Raises:
        ValueError: If it is not such a file, or the folder holds several.
    """
    path = Path(location).expanduser()
    if path.is_dir():
        files = sorted(path.glob('*.safetensors'))
        if len(files) != 1:
            raise ValueError(
                f'{path} must hold one .safetensors file; got {len(files)}. Name the file of the '
                'autoencoder'
            )
        path = files[0]
    config = load_safetensors_config(path)
    if config.get('model', {}).get('type') != 'autoencoder':
        raise ValueError(
            f'{path} must be an autoencoder from k-diffusion train-autoencoder; it is not'
        )
    section = {key: value for key, value in config['model'].items() if key != 'type'}
    network = AutoencoderConfig(**section).build()
    network.load_state_dict(load_safetensors(path))
    return network.eval().requires_grad_(False)


def diffusers_autoencoder(location: str) -> DiffusersAutoencoder:
    """Load the AutoencoderKL in a folder: its own, or the folder `vae` of a pipeline.

    Args:
        location: The folder.

    Raises:
        FileNotFoundError: If there is none.
    """
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
            f'({str(error).splitlines()[0][:120]}); pass a folder '
            'that save_pretrained wrote'
        ) from None
    return DiffusersAutoencoder(model.eval().requires_grad_(False))
