"""A U-Net whose activations, weights and updates keep their size in training, and that says how
wrong it will be.

Karras et al. (2024), arXiv 2312.02696 ("EDM2"), configuration G, from its equations;
layers/magnitude.py has the parts. No biases, no learned normalisation, and no weight decay:
learning rates are high (0.01 with AdamW) and fall like one over the root of the steps.
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
from .section import ModelSection, check_above, check_share

BALANCE = 0.3  # the share of what a branch computes when it is added to what passes by it
UNCERTAINTY_FEATURES = 128

Resampling = Literal['down', 'up'] | None


class MPBlock(ConditionedModule):
    """x [B, c_in, H, W] resampled, a residual branch that the condition [B, feats] scales, and
    attention: -> [B, c_out, H', W'].

    On the way down (`encoder`) a 1x1 convolution and a normalisation of each pixel come first; on
    the way up the convolution stands beside the branch.
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
        """Attention of the pixels by the cosine of their queries and keys, where the block has
        it.
        """
        if self.qkv is None or self.attn_out is None:
            return x
        q, k, v = (
            normalize(split_heads(tokens(y), self.n_head), dim=-1)
            for y in self.qkv(x).chunk(3, dim=1)
        )
        return mp_sum(x, self.attn_out(image(join_heads(attend(q, k, v)), x)), BALANCE)


def resample(x: Tensor, how: Resampling) -> Tensor:
    """The mean of each four pixels ('down'), or each pixel four times ('up')."""
    if how is None:
        return x
    return (
        F.avg_pool2d(x, 2) if how == 'down' else F.interpolate(x, scale_factor=2.0, mode='nearest')
    )


class ImageDenoiserModelV2(nn.Module):
    """F(x, sigma): [B, c_in, H, W] -> the same, and with `return_variance` also the log variance
    [B] of its error.

    `depths`, `channels`, `self_attn_depths`: blocks, width and attention of each level, finest
    first. The condition is made of sigma, of `mapping_cond` [B, mapping_cond_dim] and of
    `class_cond` [B], whole numbers below `num_classes`, the last of which stands for no class. Call
    `proj_` after each step of the optimizer (k-diffusion train does).
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
        self._check_given(input)
        c_noise = sigma.to(torch.promote_types(sigma.dtype, torch.float32)).log() / 4
        more = map_features(self.map_inputs, sigma, sigma_next, guidance_scale)
        cond = self.condition(c_noise, mapping_cond, class_cond, more)
        x = F.pixel_unshuffle(input, self.patch_size) if self.patch_size > 1 else input
        # A channel of ones stands in for the biases.
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
        """Which blocks on the way up are shown what one on the way down has computed: all but
        the first two and those that double.
        """
        return [i > 1 and block.resampling is None for i, block in enumerate(self.up)]

    def condition(
        self,
        c_noise: Tensor,
        mapping_cond: Tensor | None,
        class_cond: Tensor | None,
        more: Tensor | None = None,
    ) -> Tensor:
        """Return what modulates every block: [B, feats]; `more` [B, feats] is added."""
        emb = self.emb_noise(self.fourier(c_noise))
        if self.emb_class is not None:
            null = (
                torch.full_like(c_noise, self.num_classes - 1, dtype=torch.long)
                if class_cond is None
                else class_cond
            )
            one_hot = F.one_hot(null, self.num_classes)[:, :-1].to(
                emb
            )  # the class that stands for none has no entry
            emb = mp_sum(emb, self.emb_class(one_hot * (self.num_classes - 1) ** 0.5))
        elif class_cond is not None:
            raise ValueError(
                'class_cond was given to a model without classes; build it with num_classes or '
                'leave it out'
            )
        if mapping_cond is not None:
            if self.emb_cond is None or self.cond_gain is None:
                raise ValueError(
                    'mapping_cond was given to a model without one; build it with '
                    'mapping_cond_dim or leave it out'
                )
            emb = emb + self.emb_cond(mapping_cond, self.cond_gain)
        emb = emb if more is None else emb + more.to(emb)
        return mp_silu(emb)

    # Equations 14 to 16: the loss is |F - target|^2 / exp(u) + u, and u(sigma) a linear map of
    # features of the noise level alone
    def uncertainty(self, c_noise: Tensor) -> Tensor:
        """u [B], the log variance of the error at these noise levels."""
        out: Tensor = self.logvar(self.logvar_fourier(c_noise))
        return out[:, 0]

    def proj_(self) -> ImageDenoiserModelV2:
        """Brings all weights back to unit length, for a trainer to call after a step."""
        for module in self.modules():
            if isinstance(module, MPConv):
                module.proj_()
        return self

    def param_groups(self, base_lr: float = 1e-2) -> list[dict[str, Any]]:
        """All parameters, without weight decay, which would only turn lengths that have no
        effect.
        """
        return [{'params': list(self.parameters()), 'lr': base_lr, 'weight_decay': 0.0}]

    def hidden_parameters(self) -> list[nn.Parameter]:
        """The convolutions between hidden features, which Muon takes."""
        return [
            p
            for blocks in (self.down, self.up)
            for name, p in blocks.named_parameters()
            if p.ndim > 1 and '.emb.' not in f'.{name}'
        ]

    def _check_given(self, input: Tensor) -> None:
        if input.ndim != 4 or input.shape[1] != self.c_in:
            raise ValueError(
                f'the input is {list(input.shape)}; this model takes [B, {self.c_in}, H, W]'
            )
        check_sides(input.shape[2:], self.patch_size, len(self.channels) - 1)


def _encoder(
    feats: int,
    depths: Sequence[int],
    channels: Sequence[int],
    self_attn: Sequence[bool],
    dropout: float,
) -> tuple[nn.ModuleList, list[int]]:
    """The blocks on the way down, and the channels that each gives."""
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
    """The blocks on the way up: two at the coarsest level, then one for each skip, the last one
    first.
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
    augment_wrapper: bool = True  # tell the network how its image was augmented

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above(0, patch_size=self.patch_size, mapping_out=self.mapping_out)
        check_above(-1, mapping_cond_dim=self.mapping_cond_dim)
        check_share(dropout_rate=self.dropout_rate)
        check_levels(self.depths, self.channels, self.self_attn_depths, None, 0, 0)
        check_sides(self.input_size, self.patch_size, len(self.channels) - 1)

    def build(self, num_classes: int = 0) -> ImageDenoiserModelV2:
        """The network; `num_classes` counts the class that stands for none."""
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
