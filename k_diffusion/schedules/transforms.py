"""Transformations of schedules: descending levels in and out, with their dtype and device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .discrete import Table, table_levels
from .parts import append_zero, check_positive, distinct


def shift_sigmas(sigmas: Tensor | Sequence[float], shift: float) -> Tensor:
    """Return shift * sigma, a translation of log sigma; shift > 1 puts more steps at high noise.

    For flow models it is t' = s t / (1 + (s - 1) t). For a model of another resolution the shift is
    the ratio of the sides.

    Args:
        sigmas: Descending levels.
        shift: A factor > 0.

    References:
        Esser et al. (2024), arXiv:2403.03206, eq. 23.
        Hoogeboom et al. (2023), arXiv:2301.11093, section 3.1.
    """
    check_positive('1 for no shift', shift=shift)
    return _levels(sigmas) * shift


def cap_sigmas(sigmas: Tensor | Sequence[float], sigma_max: float = 4096.0) -> Tensor:
    """Replace levels above sigma_max, also infinite ones, by sigma_max, once.

    Models of zero terminal SNR and flow models start at pure noise, an infinite level. At 4096 the
    input of the network differs by 1 part in 4096.

    Args:
        sigmas: Descending levels.
        sigma_max: The bound.

    References:
        Lin et al. (2023), arXiv:2305.08891.
    """
    check_positive('4096 is usual', sigma_max=sigma_max)
    return distinct(_levels(sigmas).clamp(max=sigma_max))


def quantize_sigmas(sigmas: Tensor | Sequence[float], table: Table) -> Tensor:
    """Replace every level by the nearest of a table in log sigma, once; a 0 at the end stays.

    For a network that knows integer timesteps only.

    Args:
        sigmas: Descending levels.
        table: The ascending levels of the model, or an object that has them as sigmas.
    """
    levels, trained = _levels(sigmas), table_levels(table)
    positive = levels[levels > 0]
    middles = (trained[:-1] * trained[1:]).sqrt()
    nearest = trained[torch.bucketize(positive.detach().cpu().double(), middles)].to(levels)
    return final_denoise(distinct(nearest), bool(levels[-1] == 0))


def discard_penultimate_sigma(sigmas: Tensor | Sequence[float]) -> Tensor:
    """Remove the level before the last: the lowest one, from which two-stage samplers gain little.

    Make the schedule with n + 1 steps to get n. Usual with dpm_2, dpm_2_ancestral and uni_pc.

    Args:
        sigmas: Descending levels.

    Raises:
        ValueError: If there are fewer than two steps.
    """
    levels = _levels(sigmas)
    if len(levels) < 3:
        raise ValueError(
            f'sigmas must have at least 2 steps, one more than the result; got {len(levels) - 1}'
        )
    return torch.cat([levels[:-2], levels[-1:]])


def final_denoise(sigmas: Tensor | Sequence[float], append: bool = True) -> Tensor:
    """Append a 0, so that the last step removes all noise; or remove it.

    Args:
        sigmas: Descending levels.
        append: True to end at 0, False to end at the lowest level above it.
    """
    levels = _levels(sigmas, empty=True)
    positive = levels[levels > 0]
    return append_zero(positive) if append else positive


def sigmas_for_strength(sigmas: Tensor | Sequence[float], strength: float) -> Tensor:
    """Return the last round(strength n) of n steps, at least one, to change an image.

    The image is noised to the first of these levels. With strength 1 x = image + sigmas[0] * noise
    forgets the image. To take n steps at any strength, make the schedule with round(n / strength)
    steps.

    Args:
        sigmas: Descending levels.
        strength: In (0, 1]; small values change little.

    Raises:
        ValueError: If strength is outside (0, 1], or sigmas has one level.
    """
    levels = _levels(sigmas)
    if not 0 < strength <= 1:
        raise ValueError(f'strength must be in (0, 1] (small values change little); got {strength}')
    if len(levels) < 2:
        raise ValueError('sigmas must hold at least two levels; got one')
    steps = len(levels) - 1
    return levels[steps - max(1, round(strength * steps)) :]


def _levels(sigmas: Tensor | Sequence[float], empty: bool = False) -> Tensor:
    """Return a schedule as a floating-point tensor; raise a ValueError if it is none."""
    levels = torch.as_tensor(sigmas)
    levels = levels if levels.is_floating_point() else levels.float()
    if (
        levels.ndim != 1
        or not (len(levels) or empty)
        or not (levels >= 0).all()
        or (levels[1:] > levels[:-1]).any()
    ):
        raise ValueError(
            'sigmas must be one list of descending noise levels >= 0; got shape '
            f'{tuple(levels.shape)}, starting with {levels.flatten()[:3].tolist()}'
        )
    return levels
