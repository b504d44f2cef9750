"""A U-Net of one normalisation per block, gated branches and learned resampling.

It takes images, and with `dims` 1 or 3 sequences or volumes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.modules import checkpoint
from ..core.tensors import append_dims
from ..layers.attention import attend, image, join_heads, split_heads, tokens
from ..layers.conditioning import ConditionedModule, zero_init
from ..layers.dimensions import channel_dropout, conv
from ..layers.embeddings import FourierFeatures, MapInputs, map_features
from ..layers.layout import channels_last
from .levels import HEAD_SIZE, check_levels, check_sides, n_groups
from .section import ModelSection, check_above, check_at_least, check_share
from .windows import fold_patches, unfold_patches

GATE_STD = 1e-2  # the initial scale of the weights of the modulation, relative to torch's


def normalize_pixels(x: Tensor) -> Tensor:
    """Normalise each pixel over its channels to mean 0 and variance 1.

    Args:
        x: [B, C, ...].
    """
    return F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1)


class ModulatedBranch(ConditionedModule):
    """x + gate(cond) branch(normalize(x) (1 + scale(cond)) + shift(cond)): [B, C, ...] -> the same.

    A subclass defines `branch`. The gates start near zero, so that a new network is close to the
    identity. The normalisation is that of each pixel over its channels, which leaves the
    differences between the pixels of an item unchanged.

    Args:
        feats: The features of the condition.
        channels: C.

    References:
        Peebles & Xie (2022), arXiv:2212.09748, section 3.2 ("adaLN-Zero"); Ba et al. (2016),
        arXiv:1607.06450.
    """

    def __init__(self, feats: int, channels: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(feats, 3 * channels)
        with torch.no_grad():
            self.modulation.weight.mul_(GATE_STD)
            self.modulation.bias.zero_()

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """Return x and the gated branch, added.

        Args:
            x: [B, C, ...].
            cond: [B, feats].
        """
        scale, shift, gate = (append_dims(t, x.ndim) for t in self.modulation(cond).chunk(3, dim=1))
        y = self.branch(torch.addcmul(shift, normalize_pixels(x), scale + 1))
        return torch.addcmul(x, y, gate)

    def branch(self, x: Tensor) -> Tensor:
        """Return the part that is gated and added.

        Args:
            x: The modulated input, [B, C, ...].
        """
        raise NotImplementedError


class ConvBranch(ModulatedBranch):
    """Two convolutions of width 3 around a SiLU.

    Args:
        dims: The number of spatial axes.
        feats: The features of the condition.
        channels: The channels.
        dropout_rate: The dropout rate.
    """

    def __init__(self, dims: int, feats: int, channels: int, dropout_rate: float = 0.0) -> None:
        super().__init__(feats, channels)
        self.conv_in = conv(dims, channels, channels, 3, padding=1)
        self.dropout = channel_dropout(dims, dropout_rate)
        self.conv_out = conv(dims, channels, channels, 3, padding=1)

    def branch(self, x: Tensor) -> Tensor:
        """Return the part that is gated and added.

        Args:
            x: The modulated input, [B, C, ...].
        """
        y: Tensor = self.conv_out(self.dropout(F.silu(self.conv_in(x))))
        return y


class AttentionBranch(ModulatedBranch):
    """Attention of all pixels to each other.

    Args:
        dims: The number of spatial axes.
        feats: The features of the condition.
        channels: The channels.
        dropout_rate: The dropout rate.
    """

    def __init__(self, dims: int, feats: int, channels: int, dropout_rate: float = 0.0) -> None:
        super().__init__(feats, channels)
        self.n_head, self.dropout_rate = n_groups(channels, HEAD_SIZE), dropout_rate
        self.qkv = conv(dims, channels, 3 * channels, 1)
        self.out = conv(dims, channels, channels, 1)

    def branch(self, x: Tensor) -> Tensor:
        """Return the part that is gated and added.

        Args:
            x: The modulated input, [B, C, ...].
        """
        q, k, v = (split_heads(tokens(t), self.n_head) for t in self.qkv(x).chunk(3, dim=1))
        rate = self.dropout_rate if self.training else 0.0
        y: Tensor = self.out(image(join_heads(attend(q, k, v, dropout_rate=rate)), x))
        return y


class Level(nn.Module):
    """The branches of one level on the way down or up.

    Each block is a branch of convolutions, and one of attention if the level attends.

    Args:
        dims: The number of spatial axes.
        feats: The features of the condition.
        depth: The number of blocks.
        channels: The channels.
        attends: Add attention.
        dropout: The dropout rate.
    """

    def __init__(
        self, dims: int, feats: int, depth: int, channels: int, attends: bool, dropout: float
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList()
        for _ in range(depth):
            self.branches.append(ConvBranch(dims, feats, channels, dropout))
            if attends:
                self.branches.append(AttentionBranch(dims, feats, channels, dropout))

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """Run the branches.

        Args:
            x: [B, C, ...].
            cond: [B, feats].
        """
        for branch in self.branches:
            x = checkpoint(branch, x, cond)
        return x


class ImageDenoiserModelV3(nn.Module):
    """A U-Net F(x, sigma): [B, c_in, ...] -> the same, and optionally its log variance [B].

    It is k-diffusion's own combination of published parts. The condition consists of sigma,
    mapping_cond and class_cond.

    Args:
        c_in: The channels.
        feats: The features of the condition.
        depths: The number of blocks of each level, finest first, both down and up.
        channels: The channels of each level.
        self_attn_depths: True for levels with self-attention.
        mapping_cond_dim: The features of mapping_cond, [B, mapping_cond_dim].
        unet_cond_dim: The channels of unet_cond, [B, unet_cond_dim, ...], which is concatenated to
            the input.
        dropout_rate: The dropout rate.
        patch_size: The side of a patch.
        has_variance: Predict the log variance.
        num_classes: The number of classes, including the null class, which is the last one.
        dims: The number of spatial axes, 1 to 3.
        flow_map: Take a second noise level, sigma_next.
        guidance_input: Take the guidance scale.

    Raises:
        ValueError: If the levels cannot be built.

    References:
        Ronneberger et al. (2015), arXiv:1505.04597; Peebles & Xie (2022), arXiv:2212.09748 (gated
        branches); Luhman & Luhman (2022), arXiv:2207.04316 (patches).
    """

    def __init__(
        self,
        c_in: int,
        feats: int,
        depths: Sequence[int],
        channels: Sequence[int],
        self_attn_depths: Sequence[bool],
        *,
        mapping_cond_dim: int = 0,
        unet_cond_dim: int = 0,
        dropout_rate: float = 0.0,
        patch_size: int = 1,
        has_variance: bool = False,
        num_classes: int = 0,
        dims: int = 2,
        flow_map: bool = False,
        guidance_input: bool = False,
    ) -> None:
        super().__init__()
        check_levels(depths, channels, self_attn_depths, None, 0, 0)
        self.c_in, self.dims, self.patch_size = c_in, dims, patch_size
        self.channels, self.unet_cond_dim = list(channels), unet_cond_dim
        self.has_variance, self.num_classes = has_variance, num_classes
        self.embed_sigma = FourierFeatures(1, feats)
        self.embed_class = nn.Embedding(num_classes, feats) if num_classes else None
        self.embed_cond = (
            nn.Linear(mapping_cond_dim, feats, bias=False) if mapping_cond_dim else None
        )
        self.mapping = nn.Sequential(
            nn.Linear(feats, feats), nn.SiLU(), nn.Linear(feats, feats), nn.SiLU()
        )
        pixels = patch_size**dims
        first = channels[0]
        self.conv_in = conv(dims, (c_in + unet_cond_dim) * pixels, first, 3, padding=1)
        self.conv_out = zero_init(conv(dims, first, c_in * pixels + has_variance, 3, padding=1))
        levels = list(zip(depths, channels, self_attn_depths))
        self.down = nn.ModuleList(Level(dims, feats, *level, dropout_rate) for level in levels)
        self.up = nn.ModuleList(Level(dims, feats, *level, dropout_rate) for level in levels)
        self._make_resampling()
        self.map_inputs = MapInputs(feats, guidance_input) if flow_map else None

    def forward(
        self,
        input: Tensor,
        sigma: Tensor,
        mapping_cond: Tensor | None = None,
        unet_cond: Tensor | None = None,
        return_variance: bool = False,
        class_cond: Tensor | None = None,
        sigma_next: Tensor | None = None,
        guidance_scale: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return F(x, sigma), in the shape of x.

        Args:
            input: The scaled input, [B, c_in, ...].
            sigma: The noise levels, [B].
            mapping_cond: [B, mapping_cond_dim].
            unet_cond: [B, unet_cond_dim, ...].
            return_variance: Return the log variance [B] too.
            class_cond: Classes [B]; None stands for the null class.
            sigma_next: The second levels of a flow map, [B].
            guidance_scale: The guidance scales of a flow map, [B].

        Raises:
            ValueError: If the input or a condition does not fit the model.
        """
        self._check_given(input, unet_cond, return_variance)
        more = map_features(self.map_inputs, sigma, sigma_next, guidance_scale)
        cond = self.condition(sigma, mapping_cond, class_cond, more)
        x = input if unet_cond is None else torch.cat([input, unet_cond], dim=1)
        x = fold_patches(x, self.patch_size) if self.patch_size > 1 else x
        x = self.conv_in(channels_last(x))
        skips = []
        for level, halve in zip(self.down, [*self.halve, None]):
            x = level(x, cond)
            if halve is not None:
                skips.append(x)
                x = halve(x)
        x = self.up[-1](x, cond)
        for level, narrow, merge in reversed(list(zip(self.up, self.narrow, self.merge))):
            x = F.interpolate(narrow(x), scale_factor=2.0, mode='nearest')
            x = level(merge(torch.cat([skips.pop(), x], dim=1)), cond)
        x = self.conv_out(x)
        if self.has_variance:
            x, logvar = x[:, :-1], x[:, -1].flatten(1).mean(1)
        x = unfold_patches(x, self.patch_size) if self.patch_size > 1 else x
        return (x, logvar) if return_variance else x

    def condition(
        self,
        sigma: Tensor,
        mapping_cond: Tensor | None,
        class_cond: Tensor | None,
        more: Tensor | None = None,
    ) -> Tensor:
        """Return the features that modulate every branch, [B, feats].

        Args:
            sigma: The noise levels, [B].
            mapping_cond: [B, mapping_cond_dim].
            class_cond: Classes [B]; None stands for the null class.
            more: Features that are added, [B, feats].

        Raises:
            ValueError: If there is a condition that the model was built without.
        """
        c_noise = sigma.to(torch.promote_types(sigma.dtype, torch.float32)).log() / 4
        embedding = self.embed_sigma(append_dims(c_noise, 2))
        if mapping_cond is not None:
            if self.embed_cond is None:
                raise ValueError(
                    'mapping_cond must be left out for a model without mapping_cond_dim; got one: '
                    'build the model with mapping_cond_dim'
                )
            embedding = embedding + self.embed_cond(mapping_cond)
        if self.embed_class is not None:
            null = torch.full_like(sigma, self.num_classes - 1, dtype=torch.long)
            embedding = embedding + self.embed_class(null if class_cond is None else class_cond)
        elif class_cond is not None:
            raise ValueError(
                'class_cond must be left out for a model without num_classes; got one: build the '
                'model with num_classes'
            )
        features: Tensor = self.mapping(embedding if more is None else embedding + more)
        return features

    def param_groups(self, base_lr: float = 2e-4) -> list[dict[str, Any]]:
        """Return the weights between features, and the rest without weight decay, for an optimizer.

        Args:
            base_lr: The learning rate.
        """
        inner = ('down', 'up', 'halve', 'narrow', 'merge', 'mapping')
        decayed = {
            name for name, p in self.named_parameters() if name.startswith(inner) and p.ndim > 1
        }
        parameters = list(self.named_parameters())
        return [
            {'params': [p for name, p in parameters if name in decayed], 'lr': base_lr},
            {
                'params': [p for name, p in parameters if name not in decayed],
                'lr': base_lr,
                'weight_decay': 0.0,
            },
        ]

    def hidden_parameters(self) -> list[nn.Parameter]:
        """Return the convolutions between hidden features, for Muon."""
        ends = ('conv_in.', 'conv_out.')
        return [
            p for name, p in self.named_parameters() if p.ndim > 2 and not name.startswith(ends)
        ]

    def _make_resampling(self) -> None:
        steps = list(pairwise(self.channels))
        self.halve = nn.ModuleList(
            conv(self.dims, fine, coarse, 3, stride=2, padding=1) for fine, coarse in steps
        )
        self.merge = nn.ModuleList(
            conv(self.dims, 2 * fine, fine, 3, padding=1) for fine, _ in steps
        )
        self.narrow = nn.ModuleList(conv(self.dims, coarse, fine, 1) for fine, coarse in steps)

    def _check_given(self, input: Tensor, unet_cond: Tensor | None, variance: bool) -> None:
        if input.ndim != 2 + self.dims or input.shape[1] != self.c_in:
            sides = ', '.join('DHW'[3 - self.dims :]) if self.dims > 1 else 'L'
            raise ValueError(f'input must be [B, {self.c_in}, {sides}]; got {list(input.shape)}')
        check_sides(input.shape[2:], self.patch_size, len(self.channels) - 1)
        if (unet_cond is not None) != (self.unet_cond_dim > 0):
            raise ValueError(
                'unet_cond must be given if and only if the model has unet_cond_dim, '
                f'{self.unet_cond_dim}; got {"None" if unet_cond is None else "one"}'
            )
        if variance and not self.has_variance:
            raise ValueError(
                'return_variance must be false for a model without has_variance; got true: build '
                'the model with has_variance=True'
            )


@dataclass(kw_only=True)
class ImageV3Config(ModelSection):
    """The "model" section of a config for ImageDenoiserModelV3."""

    DIMS = (1, 2, 3)

    type: Literal['image_v3'] = 'image_v3'
    patch_size: int = 1
    mapping_out: int  # features of the condition
    depths: list[int]  # an entry for each level, finest first; so are the next two
    channels: list[int]
    self_attn_depths: list[bool]
    mapping_cond_dim: int = 0
    unet_cond_dim: int = 0
    dropout_rate: float = 0.0
    augment_wrapper: bool = True  # the augmentation is an input of the network

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above(0, patch_size=self.patch_size, mapping_out=self.mapping_out)
        check_at_least(0, mapping_cond_dim=self.mapping_cond_dim, unet_cond_dim=self.unet_cond_dim)
        check_share(dropout_rate=self.dropout_rate)
        if self.mapping_out % 2:
            raise ValueError(
                f'mapping_out must be even, half cosines and half sines; got {self.mapping_out}'
            )
        check_levels(self.depths, self.channels, self.self_attn_depths, None, 0, 0)
        check_sides(self.input_size, self.patch_size, len(self.channels) - 1)

    def build(self, num_classes: int = 0) -> ImageDenoiserModelV3:
        """Return the network.

        Args:
            num_classes: The number of classes, including the null class.
        """
        return ImageDenoiserModelV3(
            self.input_channels,
            self.mapping_out,
            self.depths,
            self.channels,
            self.self_attn_depths,
            mapping_cond_dim=self.mapping_cond_dim + (9 if self.augment_wrapper else 0),
            unet_cond_dim=self.unet_cond_dim,
            dropout_rate=self.dropout_rate,
            patch_size=self.patch_size,
            has_variance=self.has_variance,
            num_classes=num_classes,
            dims=self.dims,
            flow_map=self.flow_map,
            guidance_input=self.guidance_input,
        )
