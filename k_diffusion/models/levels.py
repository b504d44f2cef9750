"""Check which levels a U-Net can have, and which images fit it; messages start with the key."""

from __future__ import annotations

from collections.abc import Sequence

GROUP_SIZE = 32  # channels of a normalisation group
HEAD_SIZE = 64  # channels of an attention head


def n_groups(channels: int, size: int) -> int:
    """Return the number of groups of about `size` channels: at least one.

    Args:
        channels: The channels.
        size: The channels of a group.
    """
    return max(1, channels // size)


def check_skip_stages(skip_stages: int, levels: int) -> None:
    """Raise ValueError unless at least one level remains.

    Args:
        skip_stages: The number of skipped levels.
        levels: The number of levels.
    """
    if not 0 <= skip_stages < levels:
        raise ValueError(
            f'skip_stages must be from 0 to {levels - 1} with {levels} levels; got {skip_stages}'
        )


def check_sides(sides: Sequence[int], patch_size: int, halvings: int) -> None:
    """Raise ValueError for an image that cannot be cut into patches and halved.

    Args:
        sides: The sides.
        patch_size: The side of a patch.
        halvings: How many times the sides are halved.
    """
    unit = patch_size * 2**halvings
    least = 2 * unit if halvings else unit  # reflection padding needs two pixels
    if any(side % unit or side < least for side in sides):
        raise ValueError(
            f'input_size must hold multiples of {unit}, at least {least}, for patches of '
            f'{patch_size} that are halved {halvings} times; got {"x".join(map(str, sides))}: pad, '
            'crop or resize it'
        )


def check_levels(
    depths: Sequence[int],
    channels: Sequence[int],
    self_attn_depths: Sequence[bool],
    cross_attn_depths: Sequence[bool] | None,
    cross_cond_dim: int,
    skip_stages: int,
) -> None:
    """Raise ValueError for levels that cannot be built.

    Args:
        depths: Blocks per level.
        channels: Features per level.
        self_attn_depths: The levels with self-attention.
        cross_attn_depths: The levels with cross-attention.
        cross_cond_dim: Features of the tokens for cross-attention.
        skip_stages: The number of skipped levels.
    """
    levels = len(channels)
    for name, values in (
        ('depths', depths),
        ('self_attn_depths', self_attn_depths),
        ('cross_attn_depths', cross_attn_depths),
    ):
        if values is not None and len(values) != levels:
            raise ValueError(
                f'{name} must have as many entries as channels, {levels}; got {len(values)}'
            )
    if levels == 0 or min(depths) < 1 or min(channels) < 1:
        raise ValueError(
            'channels and depths must hold at least one level, of at least 1 each; '
            f'got {list(channels)} and {list(depths)}'
        )
    check_skip_stages(skip_stages, levels)
    if any(cross_attn_depths or ()) != (cross_cond_dim > 0):
        raise ValueError(
            'cross_attn_depths and cross_cond_dim must be given together: levels with '
            'cross-attention, and the features of its tokens; '
            f'got {cross_attn_depths} and {cross_cond_dim}'
        )
    for i, c in enumerate(channels):
        if c % n_groups(c, GROUP_SIZE) or 2 * c % n_groups(2 * c, GROUP_SIZE):
            raise ValueError(
                f'channels must be divisible into groups of about {GROUP_SIZE}; got {c} at level '
                f'{i}: use a multiple of {GROUP_SIZE}'
            )
        finer = channels[max(0, i - 1)]
        attends = self_attn_depths[i] or (cross_attn_depths is not None and cross_attn_depths[i])
        if attends and (c % n_groups(c, HEAD_SIZE) or finer % n_groups(finer, HEAD_SIZE)):
            raise ValueError(
                f'channels must be divisible into attention heads of about {HEAD_SIZE}; got {c} at '
                f'level {i} and {finer} above it: use multiples of {HEAD_SIZE}'
            )
