"""A U-Net of residual convolutions and attention, in patches and with levels that can be skipped.

It takes images, and with `dims` 1 or 3 sequences or volumes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ..core.tensors import append_dims
from ..layers.conditioning import UNet, zero_init
from ..layers.dimensions import conv
from ..layers.embeddings import FourierFeatures, MapInputs, map_features
from ..layers.layout import channels_last
from .levels import check_levels, check_sides, check_skip_stages
from .section import ModelSection, check_above, check_at_least, check_share
from .unet_blocks import (
    DBlock,
    MappingNet,
    ResConvBlock,
    UBlock,
    UNetLevel,
    block_layers,
    orthogonal_,
)
from .windows import fold_patches, unfold_patches

__all__ = [
    'DBlock',
    'ImageDenoiserModelV1',
    'ImageV1Config',
    'MappingNet',
    'ResConvBlock',
    'UBlock',
    'UNetLevel',
    'block_layers',
    'orthogonal_',
]


class ImageDenoiserModelV1(nn.Module):
    """A U-Net F(x, sigma): [B, c_in, ...] -> the same, and optionally its log variance [B].

    It is k-diffusion's own combination of published parts. The condition consists of sigma,
    mapping_cond and class_cond.

    Args:
        c_in: The channels.
        feats_in: The features of the condition.
        depths: The number of blocks of each level, finest first.
        channels: The channels of each level.
        self_attn_depths: True for levels with self-attention.
        cross_attn_depths: True for levels with cross-attention.
        mapping_cond_dim: The features of mapping_cond, [B, mapping_cond_dim].
        unet_cond_dim: The channels of unet_cond, [B, unet_cond_dim, ...], which is concatenated to
            the input.
        cross_cond_dim: The features of cross_cond, [B, N, cross_cond_dim], for cross-attention.
        dropout_rate: The dropout rate.
        patch_size: The side of a patch.
        skip_stages: The number of the finest levels that are not used. The input has the sides of
            the first level in use.
        has_variance: Predict the log variance.
        num_classes: The number of classes, including the null class, which is the last one.
        dims: The number of spatial axes, 1 to 3.
        flow_map: Take a second noise level, sigma_next.
        guidance_input: Take the guidance scale.

    Raises:
        ValueError: If the levels cannot be built.

    References:
        Ronneberger et al. (2015), arXiv:1505.04597; Ho et al. (2020), arXiv:2006.11239; Dhariwal &
        Nichol (2021), arXiv:2105.05233; Karras et al. (2018), arXiv:1812.04948 (mapping network);
        Luhman & Luhman (2022), arXiv:2207.04316 (patches).
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
        """Return F(x, sigma), in the shape of x.

        Args:
            input: The scaled input, [B, c_in, ...].
            sigma: The noise levels, [B].
            mapping_cond: [B, mapping_cond_dim].
            unet_cond: [B, unet_cond_dim, ...].
            cross_cond: Tokens, [B, N, cross_cond_dim].
            cross_cond_padding: [B, N], 1 for tokens without attention.
            return_variance: Return the log variance [B] too.
            class_cond: Classes [B]; None stands for the null class.
            sigma_next: The second levels of a flow map, [B].
            guidance_scale: The guidance scales of a flow map, [B].

        Raises:
            ValueError: If the input or a condition does not fit the model.
        """
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
        """Return the features that modulate every AdaGN, [B, feats_in].

        Args:
            sigma: The noise levels, [B].
            mapping_cond: [B, mapping_cond_dim].
            class_cond: Classes [B]; None stands for the null class.
            more: Features that are added, [B, feats_in].

        Raises:
            ValueError: If there is a condition that the model was built without.
        """
        c_noise = sigma.to(torch.promote_types(sigma.dtype, torch.float32)).log() / 4
        embedding = self.timestep_embed(append_dims(c_noise, 2))
        if mapping_cond is not None:
            if self.mapping_cond is None:
                raise ValueError(
                    'mapping_cond must be left out for a model without mapping_cond_dim; got one: '
                    'build the model with mapping_cond_dim'
                )
            embedding = embedding + self.mapping_cond(mapping_cond)
        if self.class_emb is not None:
            null = sigma.new_full(sigma.shape, self.class_emb.num_embeddings - 1, dtype=torch.long)
            embedding = embedding + self.class_emb(null if class_cond is None else class_cond)
        elif class_cond is not None:
            raise ValueError(
                'class_cond must be left out for a model without num_classes; got one: build the '
                'model with num_classes'
            )
        return self.mapping(embedding if more is None else embedding + more)

    def set_skip_stages(self, skip_stages: int) -> ImageDenoiserModelV1:
        """Skip more or fewer of the finest levels, and return the model.

        The first and the last projection are new; the last one is zero.

        Args:
            skip_stages: The number of skipped levels.
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
        """Set the patch size, with new first and last projections; the last one is zero.

        Args:
            patch_size: The side of a patch.
        """
        self.patch_size = patch_size
        self._make_projections()

    def param_groups(self, base_lr: float = 2e-4) -> list[dict[str, Any]]:
        """Return the inner weights, and the rest without weight decay, as groups for an optimizer.

        The rest are biases, embeddings, and the first and the last projection.

        Args:
            base_lr: The learning rate.
        """
        parameters = list(self.named_parameters())
        decayed = {
            name
            for name, _ in parameters
            if name.startswith(('mapping', 'u_net')) and name.endswith('.weight')
        }
        return [
            {'params': [p for name, p in parameters if name in decayed], 'lr': base_lr},
            {
                'params': [p for name, p in parameters if name not in decayed],
                'lr': base_lr,
                'weight_decay': 0.0,
            },
        ]

    def hidden_parameters(self) -> list[nn.Parameter]:
        """Return the matrices and convolutions between hidden features, for Muon.

        They are those of the U-Net, without the linear maps of the AdaGNs.
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
            raise ValueError(f'input must be [B, {self.c_in}, {sides}]; got {list(input.shape)}')
        check_sides(
            input.shape[2:], self.patch_size, len(self.channels) - 1 - self.u_net.skip_stages
        )
        for name, is_given, is_needed in (
            ('unet_cond', unet_cond is not None, self.unet_cond_dim > 0),
            ('cross_cond', cross_cond is not None, self.cross_cond_dim > 0),
        ):
            if is_given != is_needed:
                raise ValueError(
                    f'{name} must be left out for a model without {name}_dim; got one: build the '
                    f'model with {name}_dim'
                    if is_given
                    else f'{name} must be given to a model with {name}_dim; got None'
                )
        if return_variance and not self.has_variance:
            raise ValueError(
                'return_variance must be false for a model without has_variance; got true: build '
                'the model with has_variance=True'
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
    skip_stages: int = 0  # the number of the finest levels that are not used
    dropout_rate: float = 0.0
    augment_wrapper: bool = True  # the augmentation is an input of the network

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above(0, patch_size=self.patch_size, mapping_out=self.mapping_out)
        check_at_least(
            0,
            mapping_cond_dim=self.mapping_cond_dim,
            unet_cond_dim=self.unet_cond_dim,
            cross_cond_dim=self.cross_cond_dim,
        )
        check_share(dropout_rate=self.dropout_rate)
        if self.mapping_out % 2:
            raise ValueError(
                f'mapping_out must be even, half cosines and half sines; got {self.mapping_out}'
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
        """Return the network.

        Args:
            num_classes: The number of classes, including the null class.
        """
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
