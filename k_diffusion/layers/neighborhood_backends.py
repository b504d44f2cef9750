"""Backends of neighbourhood attention: tiles, natten's kernels, torch's flex_attention.

All compute the same function of q, k, v, so that weights fit any of them. Tiles work everywhere,
also in forward-mode differentiation; the others need CUDA. The backend is chosen when a network is
built, and one that cannot work raises an error then.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.modules import forward_mode
from ..core.registry import Registry, unknown
from .neighborhood import check_kernel_size, neighborhood_attention

#: attention(q, k, v [B, H, W, heads, D], kernel_size, scale) -> [B, H, W, heads, D], by name.
BACKENDS: Registry[Callable[[Tensor, Tensor, Tensor, int, float | None], Tensor]] = Registry(
    'backend'
)
BACKENDS.register('tiles')(neighborhood_attention)


@BACKENDS.register('natten')
def natten_attention(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, scale: float | None = None
) -> Tensor:
    """Compute neighbourhood attention by natten's fused kernel (from natten 0.17 on).

    Args:
        q: [B, H, W, heads, D].
        k: Like q.
        v: Like q.
        kernel_size: Side of the neighbourhood.
        scale: Factor of q . k.

    References:
        Hassani et al. (2024), arXiv:2403.04690.
    """
    from natten.functional import na2d

    out: Tensor = na2d(q, k, v, kernel_size, scale=scale)
    return out


@BACKENDS.register('flex')
def flex_attention(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, scale: float | None = None
) -> Tensor:
    """Compute neighbourhood attention by torch's flex_attention, compiled on CUDA.

    It skips blocks without pairs.

    Args:
        q: [B, H, W, heads, D].
        k: Like q.
        v: Like q.
        kernel_size: Side of the neighbourhood.
        scale: Factor of q . k.

    References:
        Dong et al. (2024), arXiv:2412.05496.
    """
    check_kernel_size(kernel_size, *q.shape[1:3])
    mask = _block_mask(*q.shape[1:3], kernel_size, str(q.device))
    y = _flex(q.is_cuda)(
        *(x.flatten(1, 2).transpose(1, 2) for x in (q, k, v)), block_mask=mask, scale=scale
    )
    return y.transpose(1, 2).reshape(q.shape)


def attend_nearby(
    backend: str, q: Tensor, k: Tensor, v: Tensor, kernel_size: int, scale: float | None = None
) -> Tensor:
    """Compute neighbourhood attention by a backend, or by tiles where it does not support the call.

    Args:
        backend: A name in BACKENDS.
        q: [B, H, W, heads, D].
        k: Like q.
        v: Like q.
        kernel_size: Side of the neighbourhood.
        scale: Factor of q . k.
    """
    foreign = (
        q.is_cuda
        and q.ndim == 5
        and not forward_mode()
        and q.dtype in (torch.float16, torch.bfloat16, torch.float32)
    )
    return BACKENDS[backend if foreign else 'tiles'](q, k, v, kernel_size, scale)


def choose_backend(backend: str, kernel_size: int, d_head: int, dims: int = 2) -> str:
    """Return the backend to build with: the requested one after a check, or for 'auto' the fastest.

    Without CUDA, and for grids of one axis or three, 'auto' is 'tiles'. With CUDA the available
    backends are run once, forward and backward.

    Args:
        backend: A name in BACKENDS, or 'auto'.
        kernel_size: Side of the neighbourhood.
        d_head: Width of a head.
        dims: Number of axes of the grid.
    """
    check_backend(backend, dims)
    measurable = (
        dims == 2 and torch.cuda.is_available() and torch.get_default_device().type != 'meta'
    )
    return backend if backend != 'auto' else fastest(kernel_size, d_head) if measurable else 'tiles'


def check_backend(backend: str, dims: int = 2) -> None:
    """Raise a ValueError for a backend that is unknown or cannot work here.

    Args:
        backend: A name in BACKENDS, or 'auto'.
        dims: Number of axes of the grid.
    """
    if backend not in ('auto', *BACKENDS):
        raise ValueError(f'backend: {unknown("backend", backend, ("auto", *BACKENDS))}')
    if dims != 2 and backend not in ('auto', 'tiles'):
        raise ValueError(
            f"backend must be 'auto' or 'tiles' for grids of {dims} axes; got {backend!r}"
        )
    if backend == 'natten':
        missing = why_not_natten()
        if missing:
            raise ValueError(
                f"backend must not be 'natten' here, because {missing}; 'tiles' gives the same "
                'numbers without a package'
            )


def why_not_natten() -> str | None:
    """Return the reason why natten's fused kernels are unavailable, or None."""
    if importlib.util.find_spec('natten') is None:
        return 'the package natten is not installed'
    try:
        import natten
        from natten.functional import na2d  # noqa: F401
    except (ImportError, OSError) as error:
        return f'the installed package natten has no na2d ({error})'
    # Releases before 0.20 could be built without the fused kernels, and report it; later ones
    # always have some.
    if not getattr(natten, 'has_fused_na', lambda: True)():
        return 'the installed package natten was built without fused kernels'
    return None


@functools.cache
def fastest(kernel_size: int, d_head: int) -> str:
    """Measure the fastest backend on the current CUDA device.

    The test uses bfloat16 on 32x32 tokens or a few neighbourhoods.

    Args:
        kernel_size: Side of the neighbourhood.
        d_head: Width of a head.
    """
    names = ['tiles', 'flex'] + (['natten'] if why_not_natten() is None else [])
    side = max(32, 2 * kernel_size)
    seconds = {}
    for name in names:
        try:
            seconds[name] = _milliseconds(name, side, kernel_size, d_head)
        except (
            Exception
        ) as error:  # a foreign kernel fails in ways of its own, and there is always another
            warnings.warn(
                f'neighbourhood attention by {name} failed here ({type(error).__name__}); '
                'it is skipped',
                stacklevel=2,
            )
    return min(seconds, key=lambda name: seconds[name])


def _milliseconds(name: str, side: int, kernel_size: int, d_head: int, rounds: int = 10) -> float:
    """Time forward and backward passes of a backend, after three to warm up."""
    q, k, v = torch.randn(
        3, 4, side, side, 4, d_head, device='cuda', dtype=torch.bfloat16, requires_grad=True
    ).unbind()
    event: Any = torch.cuda.Event
    start, end = event(enable_timing=True), event(enable_timing=True)
    for i in range(-3, rounds):
        if i == 0:
            start.record()
        BACKENDS[name](q, k, v, kernel_size, 1.0).sum().backward()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


@functools.cache
def _flex(compiled: bool) -> Callable[..., Tensor]:
    from torch.nn.attention import flex_attention as flex

    function: Any = flex.flex_attention
    return torch.compile(function, dynamic=False) if compiled else function


@functools.lru_cache(maxsize=64)
def _block_mask(height: int, width: int, kernel_size: int, device: str) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        def near(a: Tensor, b: Tensor, n: int) -> Tensor:
            first = (a - kernel_size // 2).clamp(0, n - kernel_size)
            return (b >= first) & (b < first + kernel_size)

        return near(query // width, key // width, height) & near(query % width, key % width, width)

    return create_block_mask(sees, None, None, height * width, height * width, device=device)
