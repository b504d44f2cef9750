"""The table of noise levels of a network, and the conversion between levels and table indices."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..core.arguments import check_whole
from ..schedules import append_zero

Self = TypeVar('Self', bound='DiscreteSchedule')


class DiscreteSchedule(nn.Module):
    """T ascending levels, with log sigma linear in the index t in [0, T - 1].

    Levels beyond an end of the table have the t of that end. The tables `sigmas` and `log_sigmas`
    are buffers that keep their dtype when the module is cast, because half precision would merge
    levels.

    Args:
        sigmas: The levels, [T].
        quantize: Round t to the nearest integer.
    """

    sigmas: Tensor
    log_sigmas: Tensor

    def __init__(self, sigmas: Tensor, quantize: bool) -> None:
        super().__init__()
        self.quantize = quantize
        self.set_sigmas(sigmas)

    def set_sigmas(self, sigmas: Tensor) -> None:
        """Replace both tables.

        Args:
            sigmas: The levels, ascending, > 0, [T].

        Raises:
            ValueError: If they are not at least two ascending levels > 0.
        """
        if (
            sigmas.ndim != 1
            or len(sigmas) < 2
            or not (sigmas > 0).all()
            or (sigmas.diff() < 0).any()
        ):
            raise ValueError(
                'sigmas must be at least two ascending levels > 0 in one dimension; got shape '
                f'{tuple(sigmas.shape)}, starting with {sigmas.flatten()[:3].tolist()}'
            )
        sigmas = sigmas.to(torch.promote_types(sigmas.dtype, torch.float32))
        self.register_buffer('sigmas', sigmas)
        self.register_buffer('log_sigmas', sigmas.log())

    @property
    def sigma_min(self) -> Tensor:
        """Return the lowest level, 0-d."""
        return self.sigmas[0]

    @property
    def sigma_max(self) -> Tensor:
        """Return the highest level, 0-d."""
        return self.sigmas[-1]

    def get_sigmas(self, n: int | None = None) -> Tensor:
        """Return n levels evenly spaced in t, descending, then 0: [n + 1].

        Args:
            n: Number of steps; None for all levels of the table.
        """
        if n is None:
            return append_zero(self.sigmas.flip(0))
        check_whole('n', n)
        return append_zero(
            self.t_to_sigma(torch.linspace(len(self.sigmas) - 1, 0, n, device=self.sigmas.device))
        )

    def sigma_to_t(self, sigma: Tensor, quantize: bool | None = None) -> Tensor:
        """Return the t of each sigma, in its shape; at least float32, or int64 if quantized.

        Args:
            sigma: Noise levels.
            quantize: Replaces the attribute quantize.
        """
        sigma, table = _alike(sigma, self.log_sigmas)
        log_sigma = sigma.log()
        low = (torch.searchsorted(table, log_sigma, right=True) - 1).clamp(0, len(table) - 2)
        tiny = torch.finfo(table.dtype).tiny  # in place of 0 between equal levels
        gap = (table[low + 1] - table[low]).clamp(min=tiny)
        w = ((log_sigma - table[low]) / gap).clamp(0, 1)
        t = (1 - w) * low + w * (low + 1)  # low + w, rounded as in the original
        return t.round().long() if (self.quantize if quantize is None else quantize) else t

    def t_to_sigma(self, t: Tensor) -> Tensor:
        """Return the sigma of each t, in its shape and at least float32.

        Args:
            t: Indices, integers or not.
        """
        t, table = _alike(t, self.log_sigmas)
        t = t.clamp(0, len(table) - 1)
        low = t.floor().long()
        return torch.lerp(table[low], table[t.ceil().long()], t - low).exp()

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self.sigmas, self.log_sigmas
        super()._apply(fn, recurse)
        self.sigmas, self.log_sigmas = map(_moved_only, before, (self.sigmas, self.log_sigmas))
        return self


def _alike(value: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in the wider of their dtypes, at least float32, on the device of the table."""
    dtype = torch.promote_types(torch.promote_types(value.dtype, table.dtype), torch.float32)
    return value.to(table.device, dtype), table.to(dtype)


def _moved_only(before: Tensor, after: Tensor) -> Tensor:
    return after if after.dtype == before.dtype else before.to(after.device)
