"""Layouts of x for diffusers networks: tokens with their positions, and lists of items.

Each function takes x, the conditions (to which it adds the positions of the tokens) and the
settings of the network. It returns the input of the network and the inverse for its output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.arguments import is_whole, show_value

Unpack = Callable[[Any], Tensor]


class Packing:
    """The layout of a batch [B, C, ...] in a pipeline: as it is, or tokens [B, n, width].

    Args:
        shape: The shape of the batch in the pipeline.
        item: The shape of an item, [C, ...]. By default tokens are those of a square image in
            patches of 2 x 2; where this does not fit, the batch is taken as it is.

    Raises:
        ValueError: If items of that shape do not fill the batch.
    """

    def __init__(self, shape: Sequence[int], item: Sequence[int] | None = None) -> None:
        side = math.isqrt(shape[1])
        if item is None and len(shape) == 3 and side**2 == shape[1] and shape[2] % 4 == 0:
            item = [shape[2] // 4, 2 * side, 2 * side]
        self.item = tuple(shape[1:] if item is None else item)
        self.side = 0
        if self.item == tuple(shape[1:]):
            return
        whole = all(is_whole(n) for n in self.item)
        self.side = math.isqrt(shape[-1] // self.item[0]) if whole and self.item else 0
        fits = self.side > 0 and shape[-1] == self.item[0] * self.side**2
        if len(shape) != 3 or not fits or math.prod(self.item) != math.prod(shape[1:]):
            raise ValueError(
                f'latent_shape must be the shape of an item of the latents {list(shape)}; got '
                f'{show_value(item)}'
            )

    def pack(self, x: Tensor) -> Tensor:
        """Convert a batch [B, C, ...] to the layout of the pipeline.

        Args:
            x: The batch.
        """
        if not self.side:
            return x
        return (F.pixel_unshuffle(x, self.side) if self.side > 1 else x).flatten(2).mT

    def unpack(self, x: Tensor) -> Tensor:
        """Convert a batch in the layout of the pipeline to [B, C, ...].

        Args:
            x: The batch.
        """
        if not self.side:
            return x
        x = x.mT.unflatten(2, [n // self.side for n in self.item[1:]])
        return F.pixel_shuffle(x, self.side) if self.side > 1 else x


def pack_flux(x: Tensor, cond: dict[str, Any], config: Mapping[str, Any]) -> tuple[Any, Unpack]:
    """Cut [B, C, H, W] into tokens at (0, row, column); the text is at (0, 0, 0).

    Args:
        x: The batch.
        cond: The conditions, changed in place.
        config: The settings of the network.
    """
    tokens, unpack, grid = _cut_patches(x, config)
    rows, columns = _places(grid, x)
    cond.setdefault('img_ids', torch.stack([torch.zeros_like(rows), rows, columns], -1))
    cond.setdefault('txt_ids', x.new_zeros(cond['encoder_hidden_states'].shape[1], 3))
    return tokens, unpack


def pack_ovis(x: Tensor, cond: dict[str, Any], config: Mapping[str, Any]) -> tuple[Any, Unpack]:
    """Cut x as for Flux; the words of the text are at (0, index, index).

    Args:
        x: The batch.
        cond: The conditions, changed in place.
        config: The settings of the network.
    """
    words = torch.arange(cond['encoder_hidden_states'].shape[1], device=x.device, dtype=x.dtype)
    cond.setdefault('txt_ids', torch.stack([torch.zeros_like(words), words, words], -1))
    return pack_flux(x, cond, config)


def pack_flux2(x: Tensor, cond: dict[str, Any], config: Mapping[str, Any]) -> tuple[Any, Unpack]:
    """Cut [B, C, H, W] into tokens at (0, row, column, 0); the text is at (0, 0, 0, index).

    Args:
        x: The batch.
        cond: The conditions, changed in place.
        config: The settings of the network.
    """
    tokens, unpack, grid = _cut_patches(x, config)
    rows, columns = _places(grid, x)
    none = torch.zeros_like(rows)
    cond.setdefault('img_ids', torch.stack([none, rows, columns, none], -1))
    words = torch.arange(cond['encoder_hidden_states'].shape[1], device=x.device, dtype=x.dtype)
    cond.setdefault('txt_ids', F.pad(words[:, None], (3, 0)))
    return tokens, unpack


def pack_chroma(x: Tensor, cond: dict[str, Any], config: Mapping[str, Any]) -> tuple[Any, Unpack]:
    """Cut x as for Flux; the mask of the text [B, L] is extended by the tokens of the image.

    Args:
        x: The batch.
        cond: The conditions, changed in place.
        config: The settings of the network.
    """
    tokens, unpack = pack_flux(x, cond, config)
    mask = cond.get('attention_mask')
    if mask is not None and mask.shape[1] == cond['encoder_hidden_states'].shape[1]:
        cond['attention_mask'] = torch.cat([mask, mask.new_ones(len(x), tokens.shape[1])], 1)
    return tokens, unpack


def pack_qwen(x: Tensor, cond: dict[str, Any], config: Mapping[str, Any]) -> tuple[Any, Unpack]:
    """Cut [B, C, H, W] into tokens, with the frames, rows and columns of each item.

    Args:
        x: The batch.
        cond: The conditions, changed in place.
        config: The settings of the network.
    """
    tokens, unpack, grid = _cut_patches(x, config)
    cond.setdefault('img_shapes', [[(1, *grid)]] * len(x))
    return tokens, unpack


def pack_ltx(x: Tensor, cond: dict[str, Any], config: Mapping[str, Any]) -> tuple[Any, Unpack]:
    """Arrange [B, C, frames, H, W] as one token for each position.

    Args:
        x: The batch.
        cond: The conditions, changed in place.
        config: The settings of the network.
    """
    if x.ndim != 5 or x.shape[1] != config['in_channels']:
        raise ValueError(
            f'x must be latents [B, {config["in_channels"]}, frames, H, W] for this '
            f'network; got {list(x.shape)}'
        )
    size = x.shape[2:]
    cond.update(zip(('num_frames', 'height', 'width'), size))
    return x.flatten(2).mT, lambda answer: answer.mT.unflatten(2, size)


def pack_list(x: Tensor, cond: dict[str, Any], config: Mapping[str, Any]) -> tuple[Any, Unpack]:
    """Make a list of items [C, 1, H, W], and of texts without the words that `cap_mask` removes.

    Args:
        x: The batch.
        cond: The conditions, changed in place.
        config: The settings of the network.
    """
    texts, mask = cond['cap_feats'], cond.pop('cap_mask', None)
    texts = list(texts)
    if mask is not None:
        texts = [text[row.bool()] for text, row in zip(texts, mask)]
    cond['cap_feats'] = texts
    return list(x[:, :, None]), lambda answer: torch.stack(list(answer))[:, :, 0]


def pack_cogvideo(x: Tensor, cond: dict[str, Any], config: Mapping[str, Any]) -> tuple[Any, Unpack]:
    """Keep [B, frames, C, H, W]; add the rotations of its patches for networks that take them.

    Args:
        x: The batch.
        cond: The conditions, changed in place.
        config: The settings of the network.
    """
    if config.get('use_rotary_positional_embeddings') and 'image_rotary_emb' not in cond:
        cond['image_rotary_emb'] = _cogvideo_rotations(x, config)
    return x, lambda answer: answer


def _cogvideo_rotations(x: Tensor, config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines of the positions of x [B, frames, C, H, W].

    An x of another size than in training is stretched over the positions of training.

    References:
        Yang et al. (2024), arXiv:2408.06072.
    """
    from diffusers.models.embeddings import get_3d_rotary_pos_embed  # diffusers is an extra

    side, frames_per_patch = config['patch_size'], config.get('patch_size_t')
    grid = x.shape[3] // side, x.shape[4] // side
    trained = config['sample_height'] // side, config['sample_width'] // side
    options: dict[str, Any]
    if frames_per_patch is None:
        scale = min(trained[0] / grid[0], trained[1] / grid[1])
        inner = [round(scale * n) for n in grid]
        start = [round((outer - n) / 2) for outer, n in zip(trained, inner)]
        options = {
            'crops_coords': (tuple(start), tuple(s + n for s, n in zip(start, inner))),
            'temporal_size': x.shape[1],
        }
    else:
        options = {
            'crops_coords': None,
            'grid_type': 'slice',
            'max_size': trained,
            'temporal_size': -(-x.shape[1] // frames_per_patch),
        }
    cosines, sines = get_3d_rotary_pos_embed(
        embed_dim=config['attention_head_dim'], grid_size=grid, device=x.device, **options
    )
    return cosines, sines


def _cut_patches(x: Tensor, config: Mapping[str, Any]) -> tuple[Tensor, Unpack, tuple[int, int]]:
    """Cut [B, C, H, W] into square patches, tokens [B, n, width] of the network's width."""
    width = config['in_channels']
    side = math.isqrt(width // x.shape[1]) if x.ndim == 4 else 0
    if side == 0 or side * side * x.shape[1] != width or x.shape[2] % side or x.shape[3] % side:
        sides = [f'[B, {width // n**2}, H, W]' for n in (1, 2) if width % n**2 == 0]
        raise ValueError(
            f'x must be latents {" or ".join(sides)} (with even H and W in the latter) '
            f'for this network with tokens of {width} channels; got {list(x.shape)}'
        )
    grid = x.shape[2] // side, x.shape[3] // side

    def unpack(answer: Tensor) -> Tensor:
        return F.pixel_shuffle(answer.mT.unflatten(2, grid), side)

    return F.pixel_unshuffle(x, side).flatten(2).mT, unpack, grid


def _places(grid: tuple[int, int], like: Tensor) -> list[Tensor]:
    """Return the row and the column [n] of each token."""
    rows, columns = (torch.arange(n, device=like.device, dtype=like.dtype) for n in grid)
    return [place.flatten() for place in torch.meshgrid(rows, columns, indexing='ij')]
