"""A U-Net whose activations, weights and updates keep their magnitude, with a learned uncertainty.

layers/magnitude.py has its parts. It has neither biases nor learned normalisation, and is trained
without weight decay: learning rates are high (0.01 with AdamW) and decay with the inverse square
root of the step.

References:
    Karras et al. (2024), arXiv:2312.02696 ("EDM2"), configuration G.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.modules import checkpoint
from ..layers.attention import attend, image, join_heads, split_heads, tokens
from ..layers.conditioning import ConditionedModule
from ..layers.embeddings import MapInputs, map_features
from ..layers.layout import channels_last
from ..layers.magnitude import MPConv, MPFourier, mp_cat, mp_silu, mp_sum, normalize
from .levels import HEAD_SIZE, check_levels, check_sides, n_groups
from .section import ModelSection, check_above, check_at_least, check_share

BALANCE = 0.3  # the share of a branch when it is added to its input
UNCERTAINTY_FEATURES = 128

Resampling = Literal['down', 'up'] | None


class MPBlock(ConditionedModule):
    """A modulated residual branch, and attention: [B, c_in, H, W] -> [B, c_out, H', W'].

    On the way down a 1x1 convolution and a normalisation of each pixel come first; on the way up
    the convolution is parallel to the branch.

    Args:
        feats: The features of the condition.
        c_in: The channels of the input.
        c_out: The channels of the output.
        encoder: The block is on the way down.
        resampling: 'down', 'up' or None, applied first.
        self_attn: Add self-attention.
        dropout_rate: The dropout rate.

    References:
        Karras et al. (2024), arXiv:2312.02696, configuration G.
    """

    def __init__(
        self,
        feats: int,
        c_in: int,
        c_out: int,
        encoder: bool,
        resampling: Resampling = None,
        self_attn: bool = False,
        dropout_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder, self.resampling = encoder, resampling
        self.skip = MPConv(c_in, c_out, 1) if c_in != c_out else None
        self.conv_in = MPConv(c_out if encoder else c_in, c_out, 3)
        self.conv_out = MPConv(c_out, c_out, 3)
        self.emb = MPConv(feats, c_out)
        self.emb_gain = nn.Parameter(torch.zeros(()))
        self.dropout = nn.Dropout(dropout_rate)
        self.n_head = n_groups(c_out, HEAD_SIZE)
        self.qkv = MPConv(c_out, 3 * c_out, 1) if self_attn else None
        self.attn_out = MPConv(c_out, c_out, 1) if self_attn else None

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """Return the features, [B, c_out, H', W'].

        Args:
            x: [B, c_in, H, W].
            cond: [B, feats].
        """
        x = resample(x, self.resampling)
        if self.encoder:
            x = normalize(x if self.skip is None else self.skip(x), dim=1)
        y = self.conv_in(mp_silu(x))
        y = mp_silu(y * (self.emb(cond, self.emb_gain) + 1).to(y.dtype)[:, :, None, None])
        y = self.conv_out(self.dropout(y))
        if not self.encoder and self.skip is not None:
            x = self.skip(x)
        return self.attention(mp_sum(x, y, BALANCE))

    def attention(self, x: Tensor) -> Tensor:
        """Add attention of the pixels, by the cosine of queries and keys, if the block has it.

        Args:
            x: [B, c_out, H, W].
        """
        if self.qkv is None or self.attn_out is None:
            return x
        q, k, v = (
            normalize(split_heads(tokens(y), self.n_head), dim=-1)
            for y in self.qkv(x).chunk(3, dim=1)
        )
        return mp_sum(x, self.attn_out(image(join_heads(attend(q, k, v)), x)), BALANCE)


def resample(x: Tensor, how: Resampling) -> Tensor:
    """Return the mean of each four pixels ('down'), each pixel four times ('up'), or x (None).

    Args:
        x: [B, C, H, W].
        how: The resampling.
    """
    if how is None:
        return x
    return (
        F.avg_pool2d(x, 2) if how == 'down' else F.interpolate(x, scale_factor=2.0, mode='nearest')
    )


class ImageDenoiserModelV2(nn.Module):
    """A U-Net F(x, sigma): [B, c_in, H, W] -> the same, and optionally its log variance [B].

    The condition consists of sigma, mapping_cond and class_cond. Call `proj_` after each step of
    the optimizer (k-diffusion train does).

    Args:
        c_in: The channels.
        feats: The features of the condition.
        depths: The number of blocks of each level, finest first.
        channels: The channels of each level.
        self_attn_depths: True for levels with self-attention.
        mapping_cond_dim: The features of mapping_cond, [B, mapping_cond_dim].
        dropout_rate: The dropout rate.
        patch_size: The side of a patch.
        num_classes: The number of classes, including the null class, which is the last one.
        flow_map: Take a second noise level, sigma_next.
        guidance_input: Take the guidance scale.

    Raises:
        ValueError: If the levels cannot be built.

    References:
        Karras et al. (2024), arXiv:2312.02696; Luhman & Luhman (2022), arXiv:2207.04316 (patches).
    """

    def __init__(
        self,
        c_in: int,
        feats: int,
        depths: Sequence[int],
        channels: Sequence[int],
        self_attn_depths: Sequence[bool],
        mapping_cond_dim: int = 0,
        dropout_rate: float = 0.0,
        patch_size: int = 1,
        num_classes: int = 0,
        flow_map: bool = False,
        guidance_input: bool = False,
    ) -> None:
        super().__init__()
        check_levels(depths, channels, self_attn_depths, None, 0, 0)
        self.c_in, self.patch_size, self.num_classes = c_in, patch_size, num_classes
        self.channels = list(channels)
        self.fourier = MPFourier(feats)
        self.emb_noise = MPConv(feats, feats)
        self.emb_class = MPConv(num_classes - 1, feats) if num_classes > 1 else None
        self.emb_cond = MPConv(mapping_cond_dim, feats) if mapping_cond_dim else None
        self.cond_gain = nn.Parameter(torch.zeros(())) if mapping_cond_dim else None
        self.conv_in = MPConv(c_in * patch_size**2 + 1, channels[0], 3)
        self.down, widths = _encoder(feats, depths, channels, self_attn_depths, dropout_rate)
        self.up = _decoder(
            feats, depths, channels, self_attn_depths, dropout_rate, [channels[0], *widths]
        )
        self.conv_out = MPConv(channels[0], c_in * patch_size**2, 3)
        self.out_gain = nn.Parameter(torch.zeros(()))
        self.logvar_fourier = MPFourier(UNCERTAINTY_FEATURES)
        self.logvar = MPConv(UNCERTAINTY_FEATURES, 1)
        self.map_inputs = MapInputs(feats, guidance_input) if flow_map else None

    def forward(
        self,
        input: Tensor,
        sigma: Tensor,
        mapping_cond: Tensor | None = None,
        return_variance: bool = False,
        class_cond: Tensor | None = None,
        sigma_next: Tensor | None = None,
        guidance_scale: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return F(x, sigma), in the shape of x.

        Args:
            input: The scaled input, [B, c_in, H, W].
            sigma: The noise levels, [B].
            mapping_cond: [B, mapping_cond_dim].
            return_variance: Return the log variance [B] too.
            class_cond: Classes [B]; None stands for the null class.
            sigma_next: The second levels of a flow map, [B].
            guidance_scale: The guidance scales of a flow map, [B].

        Raises:
            ValueError: If the input or a condition does not fit the model.
        """
        self._check_given(input)
        c_noise = sigma.to(torch.promote_types(sigma.dtype, torch.float32)).log() / 4
        more = map_features(self.map_inputs, sigma, sigma_next, guidance_scale)
        cond = self.condition(c_noise, mapping_cond, class_cond, more)
        x = F.pixel_unshuffle(input, self.patch_size) if self.patch_size > 1 else input
        # A channel of ones replaces the biases.
        x = self.conv_in(channels_last(torch.cat([x, torch.ones_like(x[:, :1])], dim=1)))
        skips = [x]
        for block in self.down:
            x = checkpoint(block, x, cond)
            skips.append(x)
        for i, block in enumerate(self.up):
            x = checkpoint(block, mp_cat(x, skips.pop()) if self.joins[i] else x, cond)
        x = self.conv_out(x, self.out_gain)
        x = F.pixel_shuffle(x, self.patch_size) if self.patch_size > 1 else x
        return (x, self.uncertainty(c_noise)) if return_variance else x

    @property
    def joins(self) -> list[bool]:
        """True for the blocks on the way up that take a skip connection.

        The first two and those that upsample do not.
        """
        return [i > 1 and block.resampling is None for i, block in enumerate(self.up)]

    def condition(
        self,
        c_noise: Tensor,
        mapping_cond: Tensor | None,
        class_cond: Tensor | None,
        more: Tensor | None = None,
    ) -> Tensor:
        """Return the features that modulate every block, [B, feats].

        Args:
            c_noise: log(sigma) / 4, [B].
            mapping_cond: [B, mapping_cond_dim].
            class_cond: Classes [B]; None stands for the null class.
            more: Features that are added, [B, feats].

        Raises:
            ValueError: If there is a condition that the model was built without.
        """
        emb = self.emb_noise(self.fourier(c_noise))
        if self.emb_class is not None:
            null = (
                torch.full_like(c_noise, self.num_classes - 1, dtype=torch.long)
                if class_cond is None
                else class_cond
            )
            # the null class has no entry
            one_hot = F.one_hot(null, self.num_classes)[:, :-1].to(emb)
            emb = mp_sum(emb, self.emb_class(one_hot * (self.num_classes - 1) ** 0.5))
        elif class_cond is not None:
            raise ValueError(
                'class_cond must be left out for a model without num_classes; got one: build the '
                'model with num_classes'
            )
        if mapping_cond is not None:
            if self.emb_cond is None or self.cond_gain is None:
                raise ValueError(
                    'mapping_cond must be left out for a model without mapping_cond_dim; got one: '
                    'build the model with mapping_cond_dim'
                )
            emb = emb + self.emb_cond(mapping_cond, self.cond_gain)
        emb = emb if more is None else emb + more.to(emb)
        return mp_silu(emb)

    def uncertainty(self, c_noise: Tensor) -> Tensor:
        """Return u [B], the log variance of the error at noise levels.

        The loss is |F - target|^2 / exp(u) + u, and u is a linear map of features of the noise
        level (equations 14 to 16 of the paper).

        Args:
            c_noise: log(sigma) / 4, [B].
        """
        out: Tensor = self.logvar(self.logvar_fourier(c_noise))
        return out[:, 0]

    def proj_(self) -> ImageDenoiserModelV2:
        """Normalise all weights to unit length, and return the model.

        A trainer calls it after each step.
        """
        for module in self.modules():
            if isinstance(module, MPConv):
                module.proj_()
        return self

    def param_groups(self, base_lr: float = 1e-2) -> list[dict[str, Any]]:
        """Return all parameters without weight decay, as a group for an optimizer.

        Weight decay would only change lengths, which have no effect.

        Args:
            base_lr: The learning rate.
        """
        return [{'params': list(self.parameters()), 'lr': base_lr, 'weight_decay': 0.0}]

    def hidden_parameters(self) -> list[nn.Parameter]:
        """Return the convolutions between hidden features, for Muon."""
        return [
            p
            for blocks in (self.down, self.up)
            for name, p in blocks.named_parameters()
            if p.ndim > 1 and '.emb.' not in f'.{name}'
        ]

    def _check_given(self, input: Tensor) -> None:
        if input.ndim != 4 or input.shape[1] != self.c_in:
            raise ValueError(f'input must be [B, {self.c_in}, H, W]; got {list(input.shape)}')
        check_sides(input.shape[2:], self.patch_size, len(self.channels) - 1)


def _encoder(
    feats: int,
    depths: Sequence[int],
    channels: Sequence[int],
    self_attn: Sequence[bool],
    dropout: float,
) -> tuple[nn.ModuleList, list[int]]:
    """Return the blocks on the way down, and the channels of their outputs."""
    blocks, widths = nn.ModuleList(), []
    c = channels[0]
    for i, depth in enumerate(depths):
        if i > 0:
            blocks.append(MPBlock(feats, c, c, True, 'down'))
            widths.append(c)
        for _ in range(depth):
            blocks.append(MPBlock(feats, c, channels[i], True, None, self_attn[i], dropout))
            c = channels[i]
            widths.append(c)
    return blocks, widths


def _decoder(
    feats: int,
    depths: Sequence[int],
    channels: Sequence[int],
    self_attn: Sequence[bool],
    dropout: float,
    skips: list[int],
) -> nn.ModuleList:
    """Return the blocks on the way up.

    They are two at the coarsest level, then one for each skip connection, the last one first.
    """
    blocks, c, deepest = nn.ModuleList(), channels[-1], len(channels) - 1
    skips = list(skips)
    for i in range(deepest, -1, -1):
        if i == deepest:
            blocks.extend(
                [
                    MPBlock(feats, c, c, False, None, self_attn[i], dropout),
                    MPBlock(feats, c, c, False, None, False, dropout),
                ]
            )
        else:
            blocks.append(MPBlock(feats, c, c, False, 'up'))
        for _ in range(depths[i] + 1):
            blocks.append(
                MPBlock(feats, c + skips.pop(), channels[i], False, None, self_attn[i], dropout)
            )
            c = channels[i]
    return blocks


@dataclass(kw_only=True)
class ImageV2Config(ModelSection):
    """The "model" section of a config for ImageDenoiserModelV2."""

    type: Literal['image_v2'] = 'image_v2'
    patch_size: int = 1
    mapping_out: int  # features of the condition
    depths: list[int]  # an entry for each level, finest first; so are the next two
    channels: list[int]
    self_attn_depths: list[bool]
    mapping_cond_dim: int = 0
    dropout_rate: float = 0.0
    has_variance: bool = True  # train with the uncertainty that the network learns
    augment_wrapper: bool = True  # the augmentation is an input of the network

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above(0, patch_size=self.patch_size, mapping_out=self.mapping_out)
        check_at_least(0, mapping_cond_dim=self.mapping_cond_dim)
        check_share(dropout_rate=self.dropout_rate)
        check_levels(self.depths, self.channels, self.self_attn_depths, None, 0, 0)
        check_sides(self.input_size, self.patch_size, len(self.channels) - 1)

    def build(self, num_classes: int = 0) -> ImageDenoiserModelV2:
        """Return the network.

        Args:
            num_classes: The number of classes, including the null class.
        """
        return ImageDenoiserModelV2(
            self.input_channels,
            self.mapping_out,
            self.depths,
            self.channels,
            self.self_attn_depths,
            mapping_cond_dim=self.mapping_cond_dim + (9 if self.augment_wrapper else 0),
            dropout_rate=self.dropout_rate,
            patch_size=self.patch_size,
            num_classes=num_classes,
            flow_map=self.flow_map,
            guidance_input=self.guidance_input,
        )
