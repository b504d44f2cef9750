"""Growing: what a network for larger pictures takes over from one that was trained on smaller ones.

The U-Net wakes levels that rested; the hourglass transformer is given outer levels; each of them
may change its patches. Whatever touches the pixels is then new, and its last layer starts at zero.
After Karras et al. (2018), arXiv 1710.10196.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import singledispatch
from typing import Any, NamedTuple, cast

from torch import nn

from .image_transformer_v1 import ImageTransformerDenoiserModelV1
from .image_transformer_v2 import ImageTransformerDenoiserModelV2
from .image_v1 import ImageDenoiserModelV1
from .image_v2 import ImageDenoiserModelV2
from .image_v3 import ImageDenoiserModelV3


class Growth(NamedTuple):
    """How one network becomes another: the name that a tensor of the old one bears in the new one
    (None: it is dropped), and the modules of the new one that have learned nothing yet.
    """

    heir: Callable[[str], str | None]
    new: Sequence[nn.Module]


def inherit(network: nn.Module, old: nn.Module) -> list[str]:
    """Copies what `old` has learned into `network`, of the same kind; returns the names of the
    parameters that are new.

    Both may stand in a KarrasAugmentWrapper. Raises ValueError where they differ in more than
    growing can change.
    """
    inner, old_inner = _unwrapped(network), _unwrapped(old)
    if type(inner) is not type(old_inner) or (inner is network) != (old_inner is old):
        raise ValueError(
            f'the old network is a {_kind(old)} and the new one a {_kind(network)}; a network '
            'grows into one of its own kind'
        )
    growth = plan(inner, old_inner)
    own, taken = inner.state_dict(), {}
    for name, tensor in old_inner.state_dict().items():
        heir = growth.heir(name)
        if heir is None:
            continue
        if heir not in own or own[heir].shape != tensor.shape:
            there = f'is {list(own[heir].shape)}' if heir in own else 'is not there'
            raise ValueError(
                f'{name} is {list(tensor.shape)} in the old network and in the new one {heir} '
                f'{there}; apart from its finest '
                'levels, patches and input size the new config must describe the same network'
            )
        taken[heir] = tensor
    inner.load_state_dict(taken, strict=False)
    fresh = {id(p) for module in growth.new for p in module.parameters()}
    return [
        name
        for name, p in network.named_parameters()
        if id(p) in fresh or name.removeprefix('inner_model.') not in taken
    ]


@singledispatch
def plan(network: nn.Module, old: Any) -> Growth:
    """How `old` grows into `network`."""
    raise ValueError(
        f'a {type(network).__name__} cannot be grown; image_v1, image_v2, image_v3 and the '
        'transformers can'
    )


@plan.register
def _unet(network: ImageDenoiserModelV1, old: Any) -> Growth:
    now, before = network.u_net.skip_stages, old.u_net.skip_stages
    if now > before:
        raise ValueError(
            f'skip_stages is {now} and was {before}; growing wakes levels, it puts none to rest'
        )
    pixels = (network.patch_size, now) != (old.patch_size, before)
    ends: list[nn.Module] = [network.proj_in, network.proj_out] if pixels else []
    downs, ups = (
        cast('list[nn.Module]', [*network.u_net.d_blocks]),
        cast('list[nn.Module]', [*network.u_net.u_blocks]),
    )
    woken = [*downs[now:before], *ups[len(ups) - before : len(ups) - now]]

    def heir(name: str) -> str | None:
        # The kernels of resampling are constants, and stand where the levels in use are.
        return None if name.endswith('.kernel') or (pixels and name.startswith('proj_')) else name

    return Growth(heir, [*ends, *woken])


@plan.register
def _magnitude_preserving(network: ImageDenoiserModelV2, old: Any) -> Growth:
    same = network.patch_size == old.patch_size
    return Growth(
        lambda name: (
            name if same or name not in ('conv_in.weight', 'conv_out.weight', 'out_gain') else None
        ),
        [] if same else [network.conv_in, network.conv_out],
    )


@plan.register
def _gated(network: ImageDenoiserModelV3, old: Any) -> Growth:
    same = network.patch_size == old.patch_size
    return Growth(
        lambda name: name if same or not name.startswith(('conv_in.', 'conv_out.')) else None,
        [] if same else [network.conv_in, network.conv_out],
    )


@plan.register
def _plain_transformer(network: ImageTransformerDenoiserModelV1, old: Any) -> Growth:
    same = network.patch_in.patch_size == old.patch_in.patch_size
    return Growth(
        lambda name: name if same or name not in ('in_proj.weight', 'out_proj.weight') else None,
        [] if same else [network.in_proj, network.out_proj],
    )


@plan.register
def _hourglass(network: ImageTransformerDenoiserModelV2, old: Any) -> Growth:
    added = len(network.merges) - len(old.merges)
    if added < 0:
        raise ValueError(
            f'the new network has {-added} levels fewer than the old one; growing adds outer '
            'levels, it takes none away'
        )
    same = added == 0 and network.patch_in.patch_size == old.patch_in.patch_size
    ends: list[nn.Module] = [] if same else [network.patch_in, network.patch_out]
    outer: list[nn.Module] = [
        level
        for levels in (network.down_levels, network.up_levels, network.merges, network.splits)
        for level in levels[:added]
    ]

    def heir(name: str) -> str | None:
        part, _, rest = name.partition('.')
        if part in ('down_levels', 'up_levels', 'merges', 'splits'):
            number, _, rest = rest.partition('.')
            return f'{part}.{int(number) + added}.{rest}'
        dropped = (not same and part in ('patch_in', 'patch_out')) or (added and part == 'out_norm')
        return None if dropped else name

    return Growth(heir, [*ends, *outer, *([network.out_norm] if added else [])])


def _unwrapped(network: nn.Module) -> nn.Module:
    return getattr(network, 'inner_model', network)


def _kind(network: nn.Module) -> str:
    inner = _unwrapped(network)
    return type(inner).__name__ + ('' if inner is network else ' that is told of augmentation')
