"""A small autoencoder with a Gaussian bottleneck: images to smaller latents and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from ..core.tensors import mean_per_item
from ..layers.conditioning import ResidualBlock, zero_init
from .levels import n_groups
from .section import check_above, check_at_least


class Autoencoder(nn.Module):
    """Images [B, C, H, W] <-> latents [B, latent_channels, H / f, W / f].

    The factor f is 2^(len(channels) - 1).

    Args:
        input_channels: The channels of images.
        latent_channels: The channels of latents.
        channels: The features of each level, finest first.
        depth: Residual blocks per level.

    References:
        Kingma & Welling (2013), arXiv:1312.6114; as the first stage of latent diffusion Rombach
        et al. (2021), arXiv:2112.10752.
    """

    def __init__(
        self, input_channels: int, latent_channels: int, channels: list[int], depth: int = 1
    ) -> None:
        super().__init__()
        self.input_channels, self.latent_channels = input_channels, latent_channels
        self.factor = 2 ** (len(channels) - 1)
        down: list[nn.Module] = [nn.Conv2d(input_channels, channels[0], 3, padding=1)]
        up: list[nn.Module] = [nn.Conv2d(latent_channels, channels[-1], 3, padding=1)]
        for i, c in enumerate(channels):
            if i:
                down.append(nn.Conv2d(channels[i - 1], c, 3, stride=2, padding=1))
            down += [residual(c) for _ in range(depth)]
        for i, c in reversed(list(enumerate(channels))):
            up += [residual(c) for _ in range(depth + 1)]
            if i:
                up += [nn.Upsample(scale_factor=2.0), nn.Conv2d(c, channels[i - 1], 3, padding=1)]
        self.encoder = nn.Sequential(
            *down,
            *norm_and_activation(channels[-1]),
            nn.Conv2d(channels[-1], 2 * latent_channels, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            *up,
            *norm_and_activation(channels[0]),
            nn.Conv2d(channels[0], input_channels, 3, padding=1),
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of the latents.

        Args:
            x: Images in [-1, 1].

        Raises:
            ValueError: If their channels or sides do not fit.
        """
        if (
            x.shape[1] != self.input_channels
            or x.shape[2] % self.factor
            or x.shape[3] % self.factor
        ):
            raise ValueError(
                f'x must have {self.input_channels} channels and sides that are multiples of '
                f'{self.factor}; got {list(x.shape[1:])}'
            )
        mean, log_variance = self.encoder(x).chunk(2, 1)
        return mean, log_variance.clamp(-20, 10)

    def decode(self, z: Tensor) -> Tensor:
        """Return the images of latents, approximately in [-1, 1].

        Args:
            z: Latents.
        """
        return self.decoder(z)

    def loss(self, x: Tensor, noise: Tensor, kl_weight: float) -> Tensor:
        """Return the loss per item, [B].

        It is the mean absolute error of the image and of its differences along the sides, and the
        divergence of the latents from N(0, 1).

        Args:
            x: Images.
            noise: Standard normal noise in the shape of the latents.
            kl_weight: The weight of the divergence.
        """
        mean, log_variance = self.encode(x)
        y = self.decode(mean + noise * (log_variance / 2).exp())
        divergence = (mean**2 + log_variance.exp() - 1 - log_variance) / 2
        edges = mean_per_item((y - x).diff(dim=2).abs()) + mean_per_item((y - x).diff(dim=3).abs())
        return mean_per_item((y - x).abs()) + edges / 2 + kl_weight * mean_per_item(divergence)

    def param_groups(self, base_lr: float = 1e-3) -> list[dict[str, Any]]:
        """Return the groups for an optimizer: convolutions with weight decay, the rest without.

        Args:
            base_lr: The learning rate.
        """
        return [
            {'params': [p for p in self.parameters() if p.ndim > 1], 'lr': base_lr},
            {
                'params': [p for p in self.parameters() if p.ndim <= 1],
                'lr': base_lr,
                'weight_decay': 0.0,
            },
        ]

    def hidden_parameters(self) -> list[nn.Parameter]:
        """Return the weights of the convolutions between hidden features."""
        ends = {
            id(p)
            for layer in (self.encoder[0], self.encoder[-1], self.decoder[0], self.decoder[-1])
            for p in layer.parameters()
        }
        return [p for p in self.parameters() if p.ndim > 1 and id(p) not in ends]


def norm_and_activation(channels: int) -> list[nn.Module]:
    """Return a group norm and its activation.

    Args:
        channels: The features.
    """
    return [nn.GroupNorm(n_groups(channels, 16), channels), nn.SiLU()]


def residual(channels: int) -> nn.Module:
    """Return a residual block of two normed 3x3 convolutions.

    Args:
        channels: The features.
    """
    return ResidualBlock(
        *norm_and_activation(channels),
        nn.Conv2d(channels, channels, 3, padding=1),
        *norm_and_activation(channels),
        zero_init(nn.Conv2d(channels, channels, 3, padding=1)),
    )


@dataclass(kw_only=True)
class AutoencoderConfig:
    """The "model" section of an autoencoder's config."""

    type: Literal['autoencoder'] = 'autoencoder'
    input_channels: int
    input_size: tuple[int, int]  # H, W
    latent_channels: int = 4
    channels: list[int]  # an entry per level, finest first; each after the first halves the sides
    depth: int = 1  # residual blocks per level
    kl_weight: float = 1e-4  # how strongly latents are drawn to N(0, 1)

    def __post_init__(self) -> None:
        check_above(
            0,
            input_channels=self.input_channels,
            latent_channels=self.latent_channels,
            depth=self.depth,
        )
        check_at_least(0, kl_weight=self.kl_weight)
        if not self.channels or any(c < 1 or c % n_groups(c, 16) for c in self.channels):
            raise ValueError(
                f'channels must hold at least one level, each a multiple of 16; got {self.channels}'
            )
        factor = 2 ** (len(self.channels) - 1)
        if any(side % factor for side in self.input_size):
            raise ValueError(
                f'input_size must hold multiples of {factor} with {len(self.channels)} levels; '
                f'got {list(self.input_size)}'
            )

    def build(self) -> Autoencoder:
        """Return the network."""
        return Autoencoder(self.input_channels, self.latent_channels, self.channels, self.depth)
