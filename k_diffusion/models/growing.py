"""Initialise a network for larger images with the weights of one trained on smaller images.

The U-Net of image_v1 uses levels that it skipped; the hourglass transformer gets outer levels; all
networks may change their patches. The layers at the pixels are then new, and the last one starts
at zero.

References:
    Karras et al. (2018), arXiv:1710.10196.
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
    """The mapping from an old network to a new one.

    Attributes:
        new_name: Maps the name of a tensor of the old network to that of the new one; None drops
            it.
        new: The modules of the new network without trained weights.
    """

    new_name: Callable[[str], str | None]
    new: Sequence[nn.Module]


def inherit(network: nn.Module, old: nn.Module) -> list[str]:
    """Copy the weights of an old network into a new one of the same kind.

    Both may be wrapped in a KarrasAugmentWrapper.

    Args:
        network: The new network.
        old: The old network.

    Returns:
        The names of the parameters of `network` that are new.

    Raises:
        ValueError: If the networks differ in more than growing can change.
    """
    inner, old_inner = _unwrap(network), _unwrap(old)
    if type(inner) is not type(old_inner) or (inner is network) != (old_inner is old):
        raise ValueError(
            f'the old network must be of the kind of the new one, {_kind(network)}; '
            f'got {_kind(old)}'
        )
    growth = plan(inner, old_inner)
    own, weights = inner.state_dict(), {}
    for name, tensor in old_inner.state_dict().items():
        target = growth.new_name(name)
        if target is None:
            continue
        if target not in own or own[target].shape != tensor.shape:
            shape = list(own[target].shape) if target in own else 'no such tensor'
            raise ValueError(
                f'{target} must be {list(tensor.shape)} in the new network, as {name} in the old '
                f'one; got {shape}: apart from its finest levels, patches and input size the new '
                'config must describe the same network'
            )
        weights[target] = tensor
    inner.load_state_dict(weights, strict=False)
    fresh = {id(p) for module in growth.new for p in module.parameters()}
    return [
        name
        for name, p in network.named_parameters()
        if id(p) in fresh or name.removeprefix('inner_model.') not in weights
    ]


@singledispatch
def plan(network: nn.Module, old: Any) -> Growth:
    """Return the mapping from an old network to a new one.

    Args:
        network: The new network.
        old: The old network, of the same kind.

    Raises:
        ValueError: If networks of this kind cannot be grown, or these cannot.
    """
    raise ValueError(
        'a network to grow must be image_v1, image_v2, image_v3 or a transformer; '
        f'got {type(network).__name__}'
    )


@plan.register
def _unet(network: ImageDenoiserModelV1, old: Any) -> Growth:
    now, before = network.u_net.skip_stages, old.u_net.skip_stages
    if now > before:
        raise ValueError(
            f'skip_stages must be at most that of the old network, {before}; got {now}: growing '
            'can only add levels'
        )
    pixels = (network.patch_size, now) != (old.patch_size, before)
    ends: list[nn.Module] = [network.proj_in, network.proj_out] if pixels else []
    downs, ups = (
        cast('list[nn.Module]', [*network.u_net.d_blocks]),
        cast('list[nn.Module]', [*network.u_net.u_blocks]),
    )
    new_levels = [*downs[now:before], *ups[len(ups) - before : len(ups) - now]]

    def new_name(name: str) -> str | None:
        # The kernels of resampling are constants, and their places depend on the levels in use.
        return None if name.endswith('.kernel') or (pixels and name.startswith('proj_')) else name

    return Growth(new_name, [*ends, *new_levels])


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
    """Grow image_v3: another patch size replaces the first and the last convolution."""
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
    new_levels = len(network.merges) - len(old.merges)
    if new_levels < 0:
        raise ValueError(
            'the new network must have at least as many levels as the old one; '
            f'got {-new_levels} fewer: growing can only add outer levels'
        )
    same = new_levels == 0 and network.patch_in.patch_size == old.patch_in.patch_size
    ends: list[nn.Module] = [] if same else [network.patch_in, network.patch_out]
    outer: list[nn.Module] = [
        level
        for levels in (network.down_levels, network.up_levels, network.merges, network.splits)
        for level in levels[:new_levels]
    ]

    def new_name(name: str) -> str | None:
        part, _, rest = name.partition('.')
        if part in ('down_levels', 'up_levels', 'merges', 'splits'):
            number, _, rest = rest.partition('.')
            return f'{part}.{int(number) + new_levels}.{rest}'
        dropped = (not same and part in ('patch_in', 'patch_out')) or (
            new_levels and part == 'out_norm'
        )
        return None if dropped else name

    return Growth(new_name, [*ends, *outer, *([network.out_norm] if new_levels else [])])


def _unwrap(network: nn.Module) -> nn.Module:
    return getattr(network, 'inner_model', network)


def _kind(network: nn.Module) -> str:
    inner = _unwrap(network)
    return type(inner).__name__ + ('' if inner is network else ' with augmentation as an input')
