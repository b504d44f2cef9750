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
            f'skip_stages is {skip_stages}; with {levels} levels it must be from 0 to {levels - 1}'
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
            f'input_size is {"x".join(map(str, sides))}, which cannot be halved {halvings} times '
            f'in patches of {patch_size}; '
            f'pad, crop or resize to sides that are multiples of {unit}, at least {least}'
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
    for name, given in (
        ('depths', depths),
        ('self_attn_depths', self_attn_depths),
        ('cross_attn_depths', cross_attn_depths),
    ):
        if given is not None and len(given) != levels:
            raise ValueError(
                f'{name} has {len(given)} entries and channels has {levels}; give one for each '
                'level'
            )
    if levels == 0 or min(depths) < 1 or min(channels) < 1:
        raise ValueError(
            f'channels is {list(channels)} and depths is {list(depths)}; give at least one level, '
            'of at least 1 each'
        )
    check_skip_stages(skip_stages, levels)
    if any(cross_attn_depths or ()) != (cross_cond_dim > 0):
        raise ValueError(
            f'cross_attn_depths is {cross_attn_depths} and cross_cond_dim is {cross_cond_dim}; '
            'cross-attention needs '
            'both a level that has it and the size of what it attends to'
        )
    for i, c in enumerate(channels):
        if c % n_groups(c, GROUP_SIZE) or 2 * c % n_groups(2 * c, GROUP_SIZE):
            raise ValueError(
                f'channels has {c} at level {i}, which does not fall into groups of about '
                f'{GROUP_SIZE}; '
                f'take a multiple of {GROUP_SIZE}'
            )
        finer = channels[max(0, i - 1)]
        attends = self_attn_depths[i] or (cross_attn_depths is not None and cross_attn_depths[i])
        if attends and (c % n_groups(c, HEAD_SIZE) or finer % n_groups(finer, HEAD_SIZE)):
            raise ValueError(
                f'channels has {c} at level {i} and {finer} above it, which do not fall into '
                'attention heads of about '
                f'{HEAD_SIZE}; take multiples of {HEAD_SIZE}'
            )
