"""The U-Net: residual convolutions and attention at each level, on patches of pixels if asked, and
with levels that can rest.

It takes pictures, and with `dims` 1 or 3 sequences or volumes.

Patches: Luhman & Luhman (2022), arXiv 2207.04316.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ..core.modules import checkpoint
from ..core.tensors import append_dims
from ..layers.attention import CrossAttention, SelfAttention
from ..layers.conditioning import (
    AdaGN,
    ConditionedModule,
    ConditionedResidualBlock,
    ConditionedSequential,
    UNet,
    zero_init,
)
from ..layers.dimensions import channel_dropout, conv
from ..layers.embeddings import FourierFeatures, MapInputs, map_features
from ..layers.layout import channels_last
from ..layers.resampling import Downsample, Upsample
from .levels import GROUP_SIZE, HEAD_SIZE, check_levels, check_sides, check_skip_stages, n_groups
from .section import ModelSection, check_above, check_share
from .windows import fold_patches, unfold_patches


def orthogonal_(module: Any) -> Any:
    """The module with an orthogonal weight."""
    nn.init.orthogonal_(module.weight)
    return module


class ResConvBlock(ConditionedResidualBlock):
    """Two convolutions of width 3, each behind an AdaGN and a GELU, and a skip past them: [B,
    c_in, ...] -> [B, c_out, ...].
    """

    def __init__(
        self,
        feats_in: int,
        c_in: int,
        c_mid: int,
        c_out: int,
        group_size: int = GROUP_SIZE,
        dropout_rate: float = 0.0,
        dims: int = 2,
    ) -> None:
        super().__init__(
            AdaGN(feats_in, c_in, n_groups(c_in, group_size)),
            nn.GELU(),
            conv(dims, c_in, c_mid, 3, padding=1),
            channel_dropout(dims, dropout_rate),
            AdaGN(feats_in, c_mid, n_groups(c_mid, group_size)),
            nn.GELU(),
            zero_init(conv(dims, c_mid, c_out, 3, padding=1)),
            channel_dropout(dims, dropout_rate),
            skip=None if c_in == c_out else orthogonal_(conv(dims, c_in, c_out, 1, bias=False)),
        )


def block_layers(
    n_layers: int,
    feats_in: int,
    c_in: int,
    c_mid: int,
    c_out: int,
    group_size: int,
    head_size: int,
    dropout_rate: float,
    self_attn: bool,
    cross_attn: bool,
    c_enc: int,
    dims: int = 2,
) -> list[nn.Module]:
    """n_layers times a ResConvBlock and the attentions asked for: c_in -> c_mid -> ... -> c_mid
    -> c_out channels.
    """

    def norm(channels: int) -> AdaGN:
        return AdaGN(feats_in, channels, n_groups(channels, group_size))

    layers: list[nn.Module] = []
    for i in range(n_layers):
        c = c_mid if i < n_layers - 1 else c_out
        layers.append(
            ResConvBlock(
                feats_in, c_in if i == 0 else c_mid, c_mid, c, group_size, dropout_rate, dims
            )
        )
        if self_attn:
            layers.append(SelfAttention(dims, c, n_groups(c, head_size), norm, dropout_rate))
        if cross_attn:
            layers.append(
                CrossAttention(dims, c, c_enc, n_groups(c, head_size), norm, dropout_rate)
            )
    return layers


class UNetLevel(ConditionedSequential):
    """Layers in a row; the conditioned ones are recomputed in the backward pass under
    checkpointing.
    """

    # Sequential takes one
    def forward(self, input: Tensor, cond: Mapping[str, Tensor]) -> Tensor:  # type: ignore[override]
        for layer in self:
            input = (
                checkpoint(layer, input, cond)
                if isinstance(layer, ConditionedModule)
                else layer(input)
            )
        return input


class DBlock(UNetLevel):
    """One level on the way down: halve the sides (if asked), then the layers."""

    def __init__(
        self,
        n_layers: int,
        feats_in: int,
        c_in: int,
        c_mid: int,
        c_out: int,
        group_size: int = GROUP_SIZE,
        head_size: int = HEAD_SIZE,
        dropout_rate: float = 0.0,
        downsample: bool = False,
        self_attn: bool = False,
        cross_attn: bool = False,
        c_enc: int = 0,
        dims: int = 2,
    ) -> None:
        super().__init__(
            nn.Identity(),
            *block_layers(
                n_layers,
                feats_in,
                c_in,
                c_mid,
                c_out,
                group_size,
                head_size,
                dropout_rate,
                self_attn,
                cross_attn,
                c_enc,
                dims,
            ),
        )
        self.dims = dims
        self.set_downsample(downsample)

    def set_downsample(self, downsample: bool) -> DBlock:
        self[0] = Downsample(self.dims) if downsample else nn.Identity()
        return self


class UBlock(UNetLevel):
    """One level on the way up: the skip beside the input, the layers, then double the sides (if
    asked).
    """

    def __init__(
        self,
        n_layers: int,
        feats_in: int,
        c_in: int,
        c_mid: int,
        c_out: int,
        group_size: int = GROUP_SIZE,
        head_size: int = HEAD_SIZE,
        dropout_rate: float = 0.0,
        upsample: bool = False,
        self_attn: bool = False,
        cross_attn: bool = False,
        c_enc: int = 0,
        dims: int = 2,
    ) -> None:
        super().__init__(
            *block_layers(
                n_layers,
                feats_in,
                c_in,
                c_mid,
                c_out,
                group_size,
                head_size,
                dropout_rate,
                self_attn,
                cross_attn,
                c_enc,
                dims,
            ),
            nn.Identity(),
        )
        self.dims = dims
        self.set_upsample(upsample)

    def forward(  # type: ignore[override]  # Sequential takes one
        self,
        input: Tensor,
        cond: Mapping[str, Tensor],
        skip: Tensor | None = None,
    ) -> Tensor:
        return super().forward(input if skip is None else torch.cat([input, skip], dim=1), cond)

    def set_upsample(self, upsample: bool) -> UBlock:
        self[-1] = Upsample(self.dims) if upsample else nn.Identity()
        return self


class MappingNet(nn.Sequential):
    """The condition's own small network: linear maps and GELUs."""

    def __init__(self, feats_in: int, feats_out: int, n_layers: int = 2) -> None:
        layers: list[nn.Module] = []
        for i in range(n_layers):
            layers += [
                orthogonal_(nn.Linear(feats_in if i == 0 else feats_out, feats_out)),
                nn.GELU(),
            ]
        super().__init__(*layers)


class ImageDenoiserModelV1(nn.Module):
    """F(x, sigma): [B, c_in, ...] with `dims` spatial axes -> the same, and with `return_variance`
    also the log variance [B] of its error.

    `depths`, `channels`, `self_attn_depths`, `cross_attn_depths`: layers, width and attention of
    each level, finest first; the finest `skip_stages` levels rest, and the input has the sides of
    the first level in use. The condition is made of sigma, of `mapping_cond` [B, mapping_cond_dim]
    and of `class_cond` [B], whole numbers below `num_classes`, the last of which stands for no
    class. `unet_cond` [B, unet_cond_dim, ...] is laid beside the input; `cross_cond` [B, N,
    cross_cond_dim] is attended to, save where `cross_cond_padding` [B, N] is 1. With `flow_map`
    the condition is also made of `sigma_next` [B] and, with `guidance_input`, of `guidance_scale`
    [B].
    """

    def __init__(
        self,
        c_in: int,
        feats_in: int,
        depths: Sequence[int],
        channels: Sequence[int],
        self_attn_depths: Sequence[bool],
        cross_attn_depths: Sequence[bool] | None = None,
        mapping_cond_dim: int = 0,
        unet_cond_dim: int = 0,
        cross_cond_dim: int = 0,
        dropout_rate: float = 0.0,
        patch_size: int = 1,
        skip_stages: int = 0,
        has_variance: bool = False,
        num_classes: int = 0,
        dims: int = 2,
        flow_map: bool = False,
        guidance_input: bool = False,
    ) -> None:
        super().__init__()
        check_levels(
            depths, channels, self_attn_depths, cross_attn_depths, cross_cond_dim, skip_stages
        )
        self.c_in = c_in
        self.dims = dims
        self.channels = list(channels)
        self.unet_cond_dim = unet_cond_dim
        self.cross_cond_dim = cross_cond_dim
        self.patch_size = patch_size
        self.has_variance = has_variance
        self.timestep_embed = FourierFeatures(1, feats_in)
        self.mapping_cond = (
            nn.Linear(mapping_cond_dim, feats_in, bias=False) if mapping_cond_dim > 0 else None
        )
        self.class_emb = nn.Embedding(num_classes, feats_in) if num_classes > 0 else None
        self.mapping = MappingNet(feats_in, feats_in)

        d_blocks, u_blocks = [], []
        for i, (depth, c, self_attn) in enumerate(zip(depths, channels, self_attn_depths)):
            c_finer = channels[max(0, i - 1)]
            c_up = c if i == len(channels) - 1 else 2 * c
            cross_attn = cross_attn_depths is not None and cross_attn_depths[i]
            shared: dict[str, Any] = {
                'dropout_rate': dropout_rate,
                'self_attn': self_attn,
                'cross_attn': cross_attn,
                'c_enc': cross_cond_dim,
                'dims': dims,
            }
            d_blocks.append(
                DBlock(depth, feats_in, c_finer, c, c, downsample=i > skip_stages, **shared)
            )
            u_blocks.append(
                UBlock(depth, feats_in, c_up, c, c_finer, upsample=i > skip_stages, **shared)
            )
        self.u_net = UNet(d_blocks, reversed(u_blocks), skip_stages)
        self._make_projections()
        self.map_inputs = MapInputs(feats_in, guidance_input) if flow_map else None

    def forward(
        self,
        input: Tensor,
        sigma: Tensor,
        mapping_cond: Tensor | None = None,
        unet_cond: Tensor | None = None,
        cross_cond: Tensor | None = None,
        cross_cond_padding: Tensor | None = None,
        return_variance: bool = False,
        class_cond: Tensor | None = None,
        sigma_next: Tensor | None = None,
        guidance_scale: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        self._check_given(input, unet_cond, cross_cond, return_variance)
        more = map_features(self.map_inputs, sigma, sigma_next, guidance_scale)
        cond = {'cond': self.condition(sigma, mapping_cond, class_cond, more)}
        if cross_cond is not None:
            cond['cross'] = cross_cond
        if cross_cond_padding is not None:
            cond['cross_padding'] = cross_cond_padding
        x = input if unet_cond is None else torch.cat([input, unet_cond], dim=1)
        if self.patch_size > 1:
            x = fold_patches(x, self.patch_size)
        x = self.proj_out(self.u_net(self.proj_in(channels_last(x)), cond))
        if self.has_variance:
            x, logvar = x[:, :-1], x[:, -1].flatten(1).mean(1)
        if self.patch_size > 1:
            x = unfold_patches(x, self.patch_size)
        return (x, logvar) if return_variance else x

    def condition(
        self,
        sigma: Tensor,
        mapping_cond: Tensor | None,
        class_cond: Tensor | None,
        more: Tensor | None = None,
    ) -> Tensor:
        """Return what modulates every AdaGN: [B, feats_in]; `more` [B, feats_in] is added."""
        c_noise = sigma.to(torch.promote_types(sigma.dtype, torch.float32)).log() / 4
        embedding = self.timestep_embed(append_dims(c_noise, 2))
        if mapping_cond is not None:
            if self.mapping_cond is None:
                raise ValueError(
                    'mapping_cond was given to a model without one; build it with '
                    'mapping_cond_dim or leave it out'
                )
            embedding = embedding + self.mapping_cond(mapping_cond)
        if self.class_emb is not None:
            null = sigma.new_full(sigma.shape, self.class_emb.num_embeddings - 1, dtype=torch.long)
            embedding = embedding + self.class_emb(null if class_cond is None else class_cond)
        elif class_cond is not None:
            raise ValueError(
                'class_cond was given to a model without classes; build it with num_classes or '
                'leave it out'
            )
        return self.mapping(embedding if more is None else embedding + more)

    def set_skip_stages(self, skip_stages: int) -> ImageDenoiserModelV1:
        """Puts more or fewer of the finest levels to rest, with new first and last projections
        (the last one zero).
        """
        check_skip_stages(skip_stages, len(self.channels))
        self.u_net.skip_stages = skip_stages
        d_blocks, u_blocks = (
            cast('list[DBlock]', [*self.u_net.d_blocks]),
            cast('list[UBlock]', [*self.u_net.u_blocks]),
        )
        like = next(self.mapping.parameters())
        for i, (down, up) in enumerate(zip(d_blocks, reversed(u_blocks))):
            down.set_downsample(i > skip_stages).to(like)
            up.set_upsample(i > skip_stages).to(like)
        self._make_projections()
        return self

    def set_patch_size(self, patch_size: int) -> None:
        """Another patch size, with new first and last projections (the last one zero)."""
        self.patch_size = patch_size
        self._make_projections()

    def param_groups(self, base_lr: float = 2e-4) -> list[dict[str, Any]]:
        """The weights inside, and the rest (biases, embeddings, first and last projection)
        without weight decay.
        """
        named = list(self.named_parameters())
        decayed = {
            name
            for name, _ in named
            if name.startswith(('mapping', 'u_net')) and name.endswith('.weight')
        }
        return [
            {'params': [p for name, p in named if name in decayed], 'lr': base_lr},
            {
                'params': [p for name, p in named if name not in decayed],
                'lr': base_lr,
                'weight_decay': 0.0,
            },
        ]

    def hidden_parameters(self) -> list[nn.Parameter]:
        """The matrices and convolutions between hidden features, which Muon takes: those of the
        U-Net but the AdaGNs'.
        """
        return [
            p for name, p in self.u_net.named_parameters() if p.ndim > 1 and '.mapper.' not in name
        ]

    def _make_projections(self) -> None:
        c, pixels = self.channels[max(0, self.u_net.skip_stages - 1)], self.patch_size**self.dims
        like = next(self.mapping.parameters())
        self.proj_in = conv(self.dims, (self.c_in + self.unet_cond_dim) * pixels, c, 1).to(like)
        self.proj_out = zero_init(conv(self.dims, c, self.c_in * pixels + self.has_variance, 1)).to(
            like
        )

    def _check_given(
        self,
        input: Tensor,
        unet_cond: Tensor | None,
        cross_cond: Tensor | None,
        return_variance: bool,
    ) -> None:
        if input.ndim != 2 + self.dims or input.shape[1] != self.c_in:
            sides = ', '.join('DHW'[3 - self.dims :]) if self.dims > 1 else 'L'
            raise ValueError(
                f'the input is {list(input.shape)}; this model takes [B, {self.c_in}, {sides}]'
            )
        check_sides(
            input.shape[2:], self.patch_size, len(self.channels) - 1 - self.u_net.skip_stages
        )
        for name, given, needed in (
            ('unet_cond', unet_cond is not None, self.unet_cond_dim > 0),
            ('cross_cond', cross_cond is not None, self.cross_cond_dim > 0),
        ):
            if given != needed:
                raise ValueError(
                    f'{name} was given to a model without one; build it with {name}_dim or leave '
                    'it out'
                    if given
                    else (
                        f'{name} is missing; this model was built with {name}_dim and cannot run '
                        'without it'
                    )
                )
        if return_variance and not self.has_variance:
            raise ValueError(
                'return_variance is true, and this model has no variance output; build it with '
                'has_variance=True'
            )


@dataclass(kw_only=True)
class ImageV1Config(ModelSection):
    """The "model" section of a config for ImageDenoiserModelV1."""

    DIMS = (1, 2, 3)

    type: Literal['image_v1'] = 'image_v1'
    patch_size: int = 1
    mapping_out: int  # features of the condition
    depths: list[int]  # an entry for each level, finest first; so are the next three
    channels: list[int]
    self_attn_depths: list[bool]
    cross_attn_depths: list[bool] | None = None
    mapping_cond_dim: int = 0
    unet_cond_dim: int = 0
    cross_cond_dim: int = 0
    skip_stages: int = 0  # how many of the finest levels rest
    dropout_rate: float = 0.0
    augment_wrapper: bool = True  # tell the network how its image was augmented

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above(0, patch_size=self.patch_size, mapping_out=self.mapping_out)
        check_above(
            -1,
            mapping_cond_dim=self.mapping_cond_dim,
            unet_cond_dim=self.unet_cond_dim,
            cross_cond_dim=self.cross_cond_dim,
        )
        check_share(dropout_rate=self.dropout_rate)
        if self.mapping_out % 2:
            raise ValueError(
                f'mapping_out is {self.mapping_out}; it must be even, half cosines and half sines'
            )
        check_levels(
            self.depths,
            self.channels,
            self.self_attn_depths,
            self.cross_attn_depths,
            self.cross_cond_dim,
            self.skip_stages,
        )
        check_sides(self.input_size, self.patch_size, len(self.channels) - 1 - self.skip_stages)

    def build(self, num_classes: int = 0) -> ImageDenoiserModelV1:
        """The network; `num_classes` counts the class that stands for none."""
        return ImageDenoiserModelV1(
            self.input_channels,
            self.mapping_out,
            self.depths,
            self.channels,
            self.self_attn_depths,
            self.cross_attn_depths,
            mapping_cond_dim=self.mapping_cond_dim + (9 if self.augment_wrapper else 0),
            unet_cond_dim=self.unet_cond_dim,
            cross_cond_dim=self.cross_cond_dim,
            dropout_rate=self.dropout_rate,
            patch_size=self.patch_size,
            skip_stages=self.skip_stages,
            has_variance=self.has_variance,
            num_classes=num_classes,
            dims=self.dims,
            flow_map=self.flow_map,
            guidance_input=self.guidance_input,
        )
