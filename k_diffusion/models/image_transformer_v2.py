"""The hourglass diffusion transformer: levels of tokens, finest first, merged by twos on each axis.

Fine levels have local attention, the coarsest has global attention. On the way up each level is
mixed with the skip connection from the way down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import Linear

from ..core.modules import checkpoint
from ..core.registry import unknown
from ..layers.conditioning import zero_init
from .axial_rope import make_positions
from .cosine_attention import (
    ApplyRotaryEmbeddingInplace,
    AxialRoPE,
    NeighborhoodSelfAttentionBlock,
    SelfAttentionBlock,
    ShiftedWindowSelfAttentionBlock,
    apply_rotary_emb,
    apply_rotary_emb_,
    scale_for_cosine_sim,
    scale_for_cosine_sim_qkv,
    use_flash_2,
)
from .section import check_above, check_at_least, check_share
from .tagging import apply_wd, filter_params, tag_module, tag_param
from .transformer_blocks import (
    AdaRMSNorm,
    ConditionedTransformer,
    FeedForwardBlock,
    LinearGEGLU,
    MappingFeedForwardBlock,
    MappingNetwork,
    RMSNorm,
    linear_geglu,
    rms_norm,
)
from .transformer_config import TransformerSection
from .transformer_levels import (
    AttentionSpec,
    GlobalAttentionSpec,
    GlobalTransformerLayer,
    Level,
    LevelSpec,
    MappingSpec,
    NeighborhoodAttentionSpec,
    NeighborhoodTransformerLayer,
    NoAttentionSpec,
    NoAttentionTransformerLayer,
    ShiftedWindowAttentionSpec,
    ShiftedWindowTransformerLayer,
    TokenMerge,
    TokenSplit,
    TokenSplitWithoutSkip,
    downscale_pos,
)
from .windows import (
    apply_window_attention,
    make_shifted_window_masks,
    shifted_unwindow,
    shifted_window,
    unwindow,
    window,
)

__all__ = [
    'AdaRMSNorm',
    'ApplyRotaryEmbeddingInplace',
    'AxialRoPE',
    'FeedForwardBlock',
    'GlobalAttentionSpec',
    'GlobalTransformerLayer',
    'ImageTransformerDenoiserModelV2',
    'ImageTransformerV2Config',
    'Level',
    'LevelSpec',
    'Linear',
    'LinearGEGLU',
    'MappingFeedForwardBlock',
    'MappingNetwork',
    'MappingSpec',
    'NeighborhoodAttentionSpec',
    'NeighborhoodSelfAttentionBlock',
    'NeighborhoodTransformerLayer',
    'NoAttentionSpec',
    'NoAttentionTransformerLayer',
    'RMSNorm',
    'SelfAttentionBlock',
    'ShiftedWindowAttentionSpec',
    'ShiftedWindowSelfAttentionBlock',
    'ShiftedWindowTransformerLayer',
    'TokenMerge',
    'TokenSplit',
    'TokenSplitWithoutSkip',
    'apply_rotary_emb',
    'apply_rotary_emb_',
    'apply_wd',
    'apply_window_attention',
    'checkpoint',
    'downscale_pos',
    'filter_params',
    'linear_geglu',
    'make_shifted_window_masks',
    'rms_norm',
    'scale_for_cosine_sim',
    'scale_for_cosine_sim_qkv',
    'shifted_unwindow',
    'shifted_window',
    'tag_module',
    'tag_param',
    'unwindow',
    'use_flash_2',
    'window',
    'zero_init',
]


class ImageTransformerDenoiserModelV2(ConditionedTransformer):
    """A transformer F(x, sigma): [B, in_channels, ...] -> [B, out_channels, ...].

    It has as many spatial axes as `patch_size` has sides.

    Args:
        levels: The levels, finest first; each merges the tokens of the one before by twos along
            every axis.
        mapping: The mapping network.
        in_channels: The channels of the input.
        out_channels: The channels of the output.
        patch_size: The sides of a patch.
        num_classes: The number of classes, including the null class; 0 for none.
        mapping_cond_dim: The features of mapping_cond; 0 for none.
        flow_map: Take a second noise level, sigma_next.
        guidance_input: Take the guidance scale.

    References:
        Crowson et al. (2024), arXiv:2401.11605.
    """

    def __init__(
        self,
        levels: Sequence[LevelSpec],
        mapping: MappingSpec,
        in_channels: int,
        out_channels: int,
        patch_size: Sequence[int],
        num_classes: int = 0,
        mapping_cond_dim: int = 0,
        flow_map: bool = False,
        guidance_input: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        *outer, inner = levels
        dims = len(patch_size)
        halves = (2,) * dims
        self.patch_in = TokenMerge(in_channels, levels[0].width, patch_size)
        self.make_condition(
            mapping.depth,
            mapping.width,
            mapping.d_ff,
            mapping.dropout,
            num_classes,
            mapping_cond_dim,
            flow_map,
            guidance_input,
        )
        self.down_levels = nn.ModuleList([level.layers(mapping.width, dims) for level in outer])
        self.up_levels = nn.ModuleList(
            [level.layers(mapping.width, dims, first=level.depth) for level in outer]
        )
        self.mid_level = inner.layers(mapping.width, dims)
        self.merges = nn.ModuleList(
            [TokenMerge(fine.width, coarse.width, halves) for fine, coarse in pairwise(levels)]
        )
        self.splits = nn.ModuleList(
            [TokenSplit(coarse.width, fine.width, halves) for fine, coarse in pairwise(levels)]
        )
        self.out_norm = RMSNorm(levels[0].width)
        self.patch_out = zero_init(TokenSplitWithoutSkip(levels[0].width, out_channels, patch_size))

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        aug_cond: Tensor | None = None,
        class_cond: Tensor | None = None,
        mapping_cond: Tensor | None = None,
        sigma_next: Tensor | None = None,
        guidance_scale: Tensor | None = None,
    ) -> Tensor:
        """Return F(x, sigma), [B, out_channels, ...].

        Args:
            x: The scaled input, [B, in_channels, ...].
            sigma: The noise levels, [B].
            aug_cond: The augmentation, [B, 9]; none by default.
            class_cond: Classes [B], for a model with classes.
            mapping_cond: [B, mapping_cond_dim], for a model with mapping_cond_dim.
            sigma_next: The second levels of a flow map, [B].
            guidance_scale: The guidance scales of a flow map, [B].

        Raises:
            ValueError: If the input or a condition does not fit the model.
        """
        self._check_sides(x.shape[2:])
        cond = self.condition(sigma, aug_cond, class_cond, mapping_cond, sigma_next, guidance_scale)
        x = self.patch_in(x.movedim(1, -1))
        pos = make_positions(x.shape[1:-1], device=x.device)
        skips = []
        for down, merge in zip(self.down_levels, self.merges):
            x = down(x, pos, cond)
            skips.append((x, pos))
            x, pos = merge(x), downscale_pos(pos)
        x = self.mid_level(x, pos, cond)
        for up, split, (skip, pos) in reversed(list(zip(self.up_levels, self.splits, skips))):
            x = up(split(x, skip), pos, cond)
        return self.patch_out(self.out_norm(x)).movedim(-1, 1)

    def hidden_modules(self) -> list[nn.Module]:
        """Return the levels, and the merges and splits between them."""
        return [self.down_levels, self.up_levels, self.mid_level, self.merges, self.splits]

    def _check_sides(self, sides: Sequence[int]) -> None:
        units = [side * 2 ** len(self.merges) for side in self.patch_in.patch_size]
        if len(sides) != len(units):
            raise ValueError(f'x must have {len(units)} spatial axes; got {len(sides)}')
        if any(side % unit for side, unit in zip(sides, units)):
            raise ValueError(
                f'x must have sides that are multiples of {" and ".join(map(str, units))}; got '
                f'{"x".join(map(str, sides))}: pad, crop or resize it'
            )


#: The kinds of attention by their "type", with the defaults of their keys.
ATTENTIONS: dict[str, tuple[type[AttentionSpec], dict[str, Any]]] = {
    'global': (GlobalAttentionSpec, {'d_head': 64}),
    'neighborhood': (
        NeighborhoodAttentionSpec,
        {'d_head': 64, 'kernel_size': 7, 'backend': 'auto'},
    ),
    'shifted-window': (ShiftedWindowAttentionSpec, {'d_head': 64}),
    'none': (NoAttentionSpec, {}),
}


def attention_spec(section: dict[str, Any]) -> AttentionSpec:
    """Return the attention for its section of a config.

    Args:
        section: {"type": ..., ...}.

    Raises:
        ValueError: If the type, a key or a value is wrong.
    """
    kind = section.get('type')
    if not isinstance(kind, str) or kind not in ATTENTIONS:
        raise ValueError(f'type: {unknown("type", kind, ATTENTIONS)}')
    spec, defaults = ATTENTIONS[kind]
    values = {**defaults, **section}
    del values['type']
    names = [field.name for field in fields(spec)]
    for name in [*names, *values]:
        if name not in names:
            raise ValueError(f'{name}: {unknown("key", name, names)}')
        if not isinstance(values.get(name), int) and name != 'backend':
            raise ValueError(f'{name} must be a whole number; got {values.get(name)!r}')
    return spec(**values)


@dataclass(kw_only=True)
class ImageTransformerV2Config(TransformerSection):
    """The "model" section of a config for ImageTransformerDenoiserModelV2."""

    DIMS = (1, 2, 3)

    type: Literal['image_transformer_v2'] = 'image_transformer_v2'
    depths: list[int]  # these five: an entry for each level, finest first
    widths: list[int]
    d_ffs: list[int] | None = None  # 3 times the width
    self_attns: list[dict[str, Any]] | None = None  # neighborhoods of 7; coarsest level: global
    dropout_rate: list[float] | float | None = None
    mapping_width: int = 256
    mapping_depth: int = 2
    mapping_d_ff: int | None = None  # 3 times the width
    mapping_cond_dim: int = 0
    mapping_dropout_rate: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        n, rates = len(self.widths), self.dropout_rate
        self.d_ffs = d_ffs = self.d_ffs or [3 * width for width in self.widths]
        self.dropout_rate = dropout_rate = rates if isinstance(rates, list) else [rates or 0.0] * n
        self.self_attns = self_attns = self.self_attns or [{'type': 'neighborhood'}] * (n - 1) + [
            {'type': 'global'}
        ]
        self.mapping_d_ff = self.mapping_d_ff or 3 * self.mapping_width
        for name, values in (
            ('depths', self.depths),
            ('d_ffs', d_ffs),
            ('self_attns', self_attns),
            ('dropout_rate', dropout_rate),
        ):
            if len(values) != n or n == 0:
                raise ValueError(
                    f'{name} must have as many entries as widths, {n}, and at least one; '
                    f'got {len(values)}'
                )
        check_above(
            0,
            depths=min(self.depths),
            widths=min(self.widths),
            d_ffs=min(d_ffs),
            mapping_width=self.mapping_width,
            mapping_d_ff=self.mapping_d_ff,
        )
        check_at_least(0, mapping_depth=self.mapping_depth, mapping_cond_dim=self.mapping_cond_dim)
        check_share(mapping_dropout_rate=self.mapping_dropout_rate)
        for rate in dropout_rate:
            check_share(dropout_rate=rate)
        if self.mapping_width % 2:
            raise ValueError(
                f'mapping_width must be even, half cosines and half sines; got {self.mapping_width}'
            )
        self.check_sides(n)
        self.mapping = MappingSpec(
            self.mapping_depth, self.mapping_width, self.mapping_d_ff, self.mapping_dropout_rate
        )
        self.levels = [
            LevelSpec(*level)
            for level in zip(
                self.depths, self.widths, d_ffs, self._attentions(self_attns), dropout_rate
            )
        ]
        # The backend depends on the machine, so a completed config has it only if the config sets
        # it.
        self.self_attns = [
            {
                'type': attention['type'],
                **{key: value for key, value in asdict(level.self_attn).items() if value != 'auto'},
            }
            for attention, level in zip(self_attns, self.levels)
        ]

    def _attentions(self, sections: list[dict[str, Any]]) -> list[AttentionSpec]:
        """Return the attention of each level, and check it against its width and grid."""
        specs = []
        for i, (section, width) in enumerate(zip(sections, self.widths)):
            try:
                specs.append(attention_spec(section))
                specs[i].check(
                    width,
                    [
                        side // patch // 2**i
                        for side, patch in zip(self.input_size, self.patch_size)
                    ],
                )
            except ValueError as error:
                raise ValueError(f'self_attns[{i}].{error}') from None
        return specs

    def build(self, num_classes: int = 0) -> ImageTransformerDenoiserModelV2:
        """Return the network.

        Args:
            num_classes: The number of classes, including the null class.
        """
        return ImageTransformerDenoiserModelV2(
            self.levels,
            self.mapping,
            self.input_channels,
            self.input_channels,
            self.patch_size,
            num_classes=num_classes,
            mapping_cond_dim=self.mapping_cond_dim,
            flow_map=self.flow_map,
            guidance_input=self.guidance_input,
        )
