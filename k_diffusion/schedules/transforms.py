"""What can be done to any schedule: descending levels that mostly end in 0, in and out, in their
dtype and on their device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .discrete import Table, table_levels
from .parts import append_zero, check_positive, distinct


def shift_sigmas(sigmas: Tensor | Sequence[float], shift: float) -> Tensor:
    """shift * sigma, a translation of log sigma: more steps at high noise where shift is above 1.

    For flow models it is t' = s t / (1 + (s - 1) t) (Esser et al. 2024, arXiv:2403.03206, eq. 23).
    For a model of another resolution it is the ratio of the sides (Hoogeboom et al. 2023,
    arXiv:2301.11093, section 3.1).
    """
    check_positive('1 is none', shift=shift)
    return _levels(sigmas) * shift


def cap_sigmas(sigmas: Tensor | Sequence[float], sigma_max: float = 4096.0) -> Tensor:
    """Levels above sigma_max, infinite ones too, become sigma_max, once.

    Models of zero terminal SNR (Lin et al. 2023, arXiv:2305.08891) and flow models begin at pure
    noise, an infinite level; at 4096 the network's input is the same but for 1 part in 4096.
    """
    check_positive('4096 is usual', sigma_max=sigma_max)
    return distinct(_levels(sigmas).clamp(max=sigma_max))


def quantize_sigmas(sigmas: Tensor | Sequence[float], table: Table) -> Tensor:
    """Every level becomes the nearest of the table in log sigma, once; a 0 at the end stays.

    For a network that knows whole timesteps only. table: as in the schedules of discrete models.
    """
    levels, trained = _levels(sigmas), table_levels(table)
    positive = levels[levels > 0]
    middles = (trained[:-1] * trained[1:]).sqrt()
    nearest = trained[torch.bucketize(positive.detach().cpu().double(), middles)].to(levels)
    return final_denoise(distinct(nearest), bool(levels[-1] == 0))


def discard_penultimate_sigma(sigmas: Tensor | Sequence[float]) -> Tensor:
    """Without the level before the last: the lowest one, from which samplers of two evaluations per
    step gain little.

    Make the schedule with n + 1 steps to get n. Usual with dpm_2, dpm_2_ancestral and uni_pc.
    """
    levels = _levels(sigmas)
    if len(levels) < 3:
        raise ValueError(
            f'a schedule of {len(levels) - 1} steps has no step to spare; make it with at least '
            '2, one more than wanted'
        )
    return torch.cat([levels[:-2], levels[-1:]])


def final_denoise(sigmas: Tensor | Sequence[float], wanted: bool = True) -> Tensor:
    """With a 0 at its end, so that the last step removes all noise, or (False) without, so that
    noise of the lowest level is left.
    """
    levels = _levels(sigmas, empty=True)
    positive = levels[levels > 0]
    return append_zero(positive) if wanted else positive


def sigmas_for_strength(sigmas: Tensor | Sequence[float], strength: float) -> Tensor:
    """The last round(strength n) of n steps, at least one: to change an image by noising it to the
    first of these levels.

    strength 1 keeps all, so x = image + sigmas[0] * noise forgets the image. For n steps whatever
    the strength, make the schedule with round(n / strength) steps first.
    """
    levels = _levels(sigmas)
    if not 0 < strength <= 1:
        raise ValueError(
            f'strength={strength} keeps no part of a schedule; give more than 0 (little changes) '
            'and at most 1 (all does)'
        )
    if len(levels) < 2:
        raise ValueError(
            'sigmas holds one level, which makes no step; give a schedule of at least two'
        )
    steps = len(levels) - 1
    return levels[steps - max(1, round(strength * steps)) :]


def _levels(sigmas: Tensor | Sequence[float], empty: bool = False) -> Tensor:
    levels = torch.as_tensor(sigmas)
    levels = levels if levels.is_floating_point() else levels.float()
    if (
        levels.ndim != 1
        or not (len(levels) or empty)
        or not (levels >= 0).all()
        or (levels[1:] > levels[:-1]).any()
    ):
        raise ValueError(
            f'sigmas of shape {tuple(levels.shape)} that begin {levels.flatten()[:3].tolist()} '
            'are no schedule; '
            'give one list of descending noise levels, none below 0'
        )
    return levels
