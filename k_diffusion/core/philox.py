"""A counter-based generator: Gaussian noise of a batch as a function of (stream, item, element).

Four elements of an item have the counter (block, 0, stream) under the key of the item's number.
Philox 4x32-10 makes four words of it, and these become four normal numbers. So all items are drawn
at once, and neither the batch nor the device changes what an item is given: the words agree
exactly, the numbers to rounding.

References:
    Salmon, Moraes, Dror and Shaw (2011), "Parallel random numbers: as easy as 1, 2, 3",
    doi:10.1145/2063384.2063405, section 4.2; Box and Muller (1958), doi:10.1214/aoms/1177706645.
"""

from __future__ import annotations

import functools
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .devices import send

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF
#: The place of the lower half of an int64 that is seen as two int32.
_LOW = 0 if sys.byteorder == 'little' else 1
#: The number of counters per pass without compilation; each takes 100 bytes.
_AT_ONCE = 2**20


def philox(counter: Sequence[Tensor], key: Sequence[Tensor], rounds: int = ROUNDS) -> list[Tensor]:
    """Return the four words of each counter: int64 tensors that hold 32 bits.

    Args:
        counter: Four int64 tensors that hold 32 bits.
        key: Two of them. All six must broadcast.
        rounds: The number of rounds.
    """
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(rounds):
        # The lower 64 bits of a product are those of unsigned numbers.
        first, second = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c2 = (second >> 32 & _WORD) ^ c1 ^ k0, (first >> 32 & _WORD) ^ c3 ^ k1
        c1, c3 = second & _WORD, first & _WORD
        k0, k1 = k0 + KEY_STEPS[0] & _WORD, k1 + KEY_STEPS[1] & _WORD
    return [c0, c1, c2, c3]


def draw_normals(
    stream: int,
    items: Tensor | Sequence[int],
    shape: Sequence[int],
    device: Any = 'cpu',
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Draw Gaussian noise [B, *shape] of unit variance at once for all items.

    Element e of an item is a function of the stream, the item and e alone. It is drawn in float32,
    and cast.

    Args:
        stream: The name of the stream, 64 bits, for example from `derive_seed`.
        items: int64 [B], the numbers of the items; on the device, or on the host.
        shape: Of one item.
        device: Where the noise is wanted.
        dtype: torch's default one where it is left out.
    """
    device, dtype = torch.device(device), dtype or torch.get_default_dtype()
    drawn_on = device if device.type in ('cpu', 'cuda') else torch.device('cpu')
    if isinstance(items, Tensor) and (items.is_floating_point() or items.ndim != 1):
        raise TypeError(
            f'items must be integers, [B]; got a tensor {list(items.shape)} of {items.dtype}'
        )
    # (any type of integers: the key is read from the bits of int64)
    numbers = (
        items.to(torch.int64)
        if isinstance(items, Tensor)
        else torch.tensor(items, dtype=torch.int64)
    )
    numbers, count = send(numbers, drawn_on), math.prod(shape)
    make = _fill_compiled if drawn_on.type == 'cuda' else fill_in_place
    normals = make(numbers, stream, -(-count // 4))
    if count % 4:
        normals = normals[:, :count].contiguous()
    return send(normals.view(len(numbers), *shape).to(dtype), device)


def fill_in_place(items: Tensor, stream: int, blocks: int) -> Tensor:
    """Return normal numbers [B, 4 * blocks] in few operations, about forty.

    Args:
        items: int64 [B].
        stream: The name of the stream, 64 bits.
        blocks: The number of blocks of four numbers per item.
    """
    at_once = max(1, _AT_ONCE // max(blocks, 1))
    if len(items) > at_once:
        return torch.cat([fill_in_place(part, stream, blocks) for part in items.split(at_once)])
    first, odd = _counters(stream, blocks, items.device)
    even = first.repeat(1, len(items), 1)  # a copy for one item too: it is overwritten
    words = items.contiguous().view(torch.int32).view(-1, 2, 1)
    words = words if _LOW == 0 else words.flip(1)
    even, odd = mix_in_place(even, odd, words.transpose(0, 1) + _key_steps(items.device))
    scale, offset, turn = _constants(items.device)
    radius = torch.mul(even, scale).add_(offset).log_().mul_(-2).sqrt_()
    pairs = torch.empty(len(items), blocks, 2, dtype=torch.complex64, device=items.device)
    torch.polar(radius, torch.mul(odd, turn), out=pairs.permute(2, 0, 1))
    return torch.view_as_real(pairs).view(len(items), 4 * blocks)


def mix_in_place(even: Tensor, odd: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `philox` does, in three operations a round.

    A product is seen as pairs of int32, its two halves, so that nothing is shifted or masked. It is
    computed twice over, as rows (0, 1, 0, 1), so that rows 1 and 2 are the two swapped.

    Args:
        even: The words c0 and c2, int64 [2, B, N] of 32 bits; overwritten.
        odd: The words c1 and c3, their bits as int32, of a shape that broadcasts to [2, B, N].
        keys: The keys of the rounds, their bits as int32 [rounds, 2, B, 1].

    Returns:
        The words c0 and c2, int64 [2, B, N], and c1 and c3, their bits as int32 [2, B, N].
    """
    multipliers, (_, b, n) = _multipliers(even.device), even.shape
    scratch = even.new_empty(2, 2, 2, b, n)  # a round reads the products of the one before
    halves = scratch.view(torch.int32).view(2, 4, b, n, 2)[:, 1:3].unbind(-1)
    products, high, low = scratch.unbind(0), halves[1 - _LOW].unbind(0), halves[_LOW].unbind(0)
    target = even.view(torch.int32).view(2, b, n, 2).select(-1, _LOW)
    for i, key in enumerate(keys.unbind(0)):
        torch.mul(even, multipliers, out=products[i % 2])
        torch.bitwise_xor(high[i % 2], odd, out=target)
        target.bitwise_xor_(key)
        odd = low[i % 2]
    return even, odd


def fill(items: Tensor, name: Tensor, blocks: int) -> Tensor:
    """Return the numbers of `fill_in_place` by plain arithmetic, which compiles to one kernel.

    Args:
        items: int64 [B].
        name: The two words of the stream, int64 [2].
        blocks: The number of blocks of four numbers per item.
    """
    block, item = torch.arange(blocks, device=items.device), items[:, None]
    words = philox(
        (block, torch.zeros_like(block), name[0], name[1]), (item & _WORD, item >> 32 & _WORD)
    )
    numbers = []
    for even, odd in (words[:2], words[2:]):
        radius = (-2 * (even.to(torch.float32) * 2.0**-32 + 2.0**-33).log()).sqrt()
        angle = _to_signed(odd).to(torch.float32) * (2 * math.pi / 2**32)
        numbers += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(numbers, -1).flatten(1)


_can_compile = True


def _fill_compiled(items: Tensor, stream: int, blocks: int) -> Tensor:
    """Fill by one kernel; if compilation fails, warn once and fill in place."""
    global _can_compile
    if _can_compile:
        try:
            normals: Tensor = compile_fill()(items, _name(stream, items.device), blocks)
            return normals
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers raise any kind of error
            _can_compile = False
            warnings.warn(
                'noise is drawn by about forty kernels in place of one, since torch.compile failed '
                f'({type(error).__name__})',
                stacklevel=2,
            )
    return fill_in_place(items, stream, blocks)


@functools.cache
def compile_fill() -> Callable[..., Tensor]:
    """Return `fill` under torch.compile, one function for batches of all sizes."""
    return torch.compile(fill, dynamic=True)


def _to_signed(words: Tensor) -> Tensor:
    return words - (words >> 31 << 32)


@functools.lru_cache(maxsize=64)
def _name(stream: int, device: torch.device) -> Tensor:
    return send(torch.tensor([stream & _WORD, stream >> 32 & _WORD]), device)


@functools.lru_cache(maxsize=1)
def _counters(stream: int, blocks: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the counters of an item.

    They are the words c0 and c2, int64 [2, 1, blocks], and c1 and c3, int32 [2, 1, 1].
    """
    low, high = torch.tensor([stream & _WORD, stream >> 32 & _WORD]).unbind()
    even = torch.stack([torch.arange(blocks), low.expand(blocks)])
    odd = _to_signed(torch.stack([torch.zeros_like(high), high])).to(torch.int32)
    return send(even[:, None], device), send(odd[:, None, None], device)


@functools.cache
def _key_steps(device: torch.device) -> Tensor:
    """Return the increments of the key in each round: the bits as int32 [rounds, 2, 1, 1]."""
    steps = torch.tensor([[i * step & _WORD for step in KEY_STEPS] for i in range(ROUNDS)])
    return send(_to_signed(steps).to(torch.int32)[..., None, None], device)


@functools.cache
def _multipliers(device: torch.device) -> Tensor:
    return send(torch.tensor(MULTIPLIERS * 2).view(2, 2, 1, 1), device)


@functools.cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The factor and the offset from a word to (0, 1], and that to an angle: float32."""
    values = torch.tensor([2.0**-32, 2.0**-33, 2 * math.pi / 2**32], dtype=torch.float32)
    scale, offset, turn = send(values, device).unbind()
    return scale, offset, turn
