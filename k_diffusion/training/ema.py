"""Exponential moving averages of weights, and schedules of their decay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ..core.registry import Registry
from .sharding import local

EMAPairs = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]


class EMASched(Protocol):
    """The decay of an average by step: `get_value` for this step, then `step`."""

    def get_value(self) -> float:
        """Return the decay for this step."""

    def step(self) -> None:
        """Go to the next step."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a state.

        Args:
            state_dict: The result of state_dict.
        """


class EMAWarmup:
    """decay(k) = 1 - (1 + k / inv_gamma)^-power, clamped, with k = last_epoch - start_at.

    With inv_gamma 1, a power of 2/3 suits runs of about a million steps, 3/4 shorter ones. The
    first decay is 0, so that the average starts at the model.

    Args:
        inv_gamma: The steps of the warm-up.
        power: The exponent.
        min_value: The lower limit of the decay.
        max_value: The upper limit of the decay.
        start_at: The step at which averaging starts.
        last_epoch: The step.
    """

    def __init__(
        self,
        inv_gamma: float = 1.0,
        power: float = 1.0,
        min_value: float = 0.0,
        max_value: float = 1.0,
        start_at: int = 0,
        last_epoch: int = 0,
    ) -> None:
        self.inv_gamma = inv_gamma
        self.power = power
        self.min_value = min_value
        self.max_value = max_value
        self.start_at = start_at
        self.last_epoch = last_epoch

    def get_value(self) -> float:
        """Return the decay for this step."""
        k = max(0, self.last_epoch - self.start_at)
        return max(self.min_value, min(self.max_value, 1 - (1 + k / self.inv_gamma) ** -self.power))

    def step(self) -> None:
        """Go to the next step."""
        self.last_epoch += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the parameters and the step."""
        return dict(self.__dict__)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a state.

        Args:
            state_dict: The result of state_dict.
        """
        _update(self, state_dict)


class PowerEMA:
    """decay(t) = (1 - 1/t)^(g + 1) at step t = 1, 2, ...: an average over a fixed share of the run.

    Step s of a run of t steps has the weight (s/t)^g. `width` is the standard deviation of that
    profile divided by t, w^2 = (g + 1) / ((g + 2)^2 (g + 3)).

    Args:
        width: The relative width.
        last_epoch: The steps done.

    References:
        Karras et al. (2024), arXiv:2312.02696, section 3.1.
    """

    def __init__(self, width: float = 0.10, last_epoch: int = 0) -> None:
        self.width = width
        self.last_epoch = last_epoch
        self._exponent = power_ema_exponent(width)

    def get_value(self) -> float:
        """Return the decay for this step."""
        return (1 - 1 / (self.last_epoch + 1)) ** (self._exponent + 1)

    def step(self) -> None:
        """Go to the next step."""
        self.last_epoch += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the width and the step."""
        return {'width': self.width, 'last_epoch': self.last_epoch}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a state.

        Args:
            state_dict: The result of state_dict.
        """
        _update(self, state_dict)
        self._exponent = power_ema_exponent(self.width)


def set_ema_position(sched: EMASched, state: Mapping[str, Any]) -> None:
    """Move a schedule to the position of a saved one.

    Schedules of this module keep their own shape; others load the whole state.

    Args:
        sched: The schedule.
        state: The saved state.
    """
    ours = isinstance(sched, (EMAWarmup, PowerEMA))
    sched.load_state_dict({'last_epoch': state['last_epoch']} if ours else state)


def _update(sched: EMASched, state_dict: Mapping[str, Any]) -> None:
    """Load the keys that both kinds have, so that a run may change from one kind to the other."""
    own_state = sched.state_dict()
    sched.__dict__.update({key: value for key, value in state_dict.items() if key in own_state})


def power_ema_exponent(width: float) -> float:
    """Return the exponent g >= 0 of a power profile: w^2 = (g + 1) / ((g + 2)^2 (g + 3)).

    Args:
        width: Its relative width w.

    Raises:
        ValueError: If it is not above 0 and at most 0.288.
    """
    if not 0 < width <= 12**-0.5:
        raise ValueError(
            'width must be > 0 and <= 0.288, the plain average of all steps (0.05 to 0.15 is '
            f'usual); got {width}'
        )
    low, high = 0.0, 1 / width
    while low < (g := (low + high) / 2) < high:
        low, high = (g, high) if (g + 1) / ((g + 2) ** 2 * (g + 3)) > width**2 else (low, g)
    return g


def ema_pairs(model: nn.Module, averaged_model: nn.Module) -> EMAPairs:
    """Pair the parameters and buffers of two models with the same names.

    Args:
        model: The model.
        averaged_model: Its average.

    Returns:
        (parameters, averaged parameters, buffers, averaged buffers).

    Raises:
        ValueError: If the names differ.
    """
    lists: list[list[Tensor]] = []
    for kind in ('parameters', 'buffers'):
        own, averaged = (dict(getattr(m, f'named_{kind}')()) for m in (model, averaged_model))
        if odd := sorted(own.keys() ^ averaged.keys()):
            where = 'the model' if odd[0] in own else 'the averaged model'
            raise ValueError(
                f'averaged_model must have the {kind} of the model; got {odd[0]!r} only in '
                f'{where}. Average a model into a copy of itself (copy.deepcopy, unwrapped and not '
                'compiled)'
            )
        lists += [[local(p) for p in own.values()], [local(averaged[name]) for name in own]]
    return lists[0], lists[1], lists[2], lists[3]


@torch.no_grad()
def ema_update_pairs(pairs: EMAPairs, decay: float) -> None:
    """Apply `ema_update` to the lists of `ema_pairs`, which serve for a whole run.

    Args:
        pairs: The lists.
        decay: The decay.
    """
    params, averaged, buffers, averaged_buffers = pairs
    if params:
        torch._foreach_lerp_(
            averaged, [p.to(a.device, a.dtype) for p, a in zip(params, averaged)], 1 - decay
        )
    for buffer, copy in zip(buffers, averaged_buffers):
        copy.copy_(buffer)


def ema_update(model: nn.Module, averaged_model: nn.Module, decay: float) -> None:
    """Set averaged <- decay averaged + (1 - decay) model for parameters, and copy buffers.

    Args:
        model: The model.
        averaged_model: Its average, with the same names.
        decay: The decay.
    """
    ema_update_pairs(ema_pairs(model, averaged_model), decay)


def ema_update_dict(
    values: dict[str, float], updates: Mapping[str, float], decay: float
) -> dict[str, float]:
    """Average numbers by name in place; a new name starts at its value.

    Args:
        values: The averages.
        updates: The new values.
        decay: The decay.
    """
    for name, update in updates.items():
        values[name] = decay * values[name] + (1 - decay) * update if name in values else update
    return values


EMA_SCHEDS: Registry[type] = Registry('ema_sched type')


@EMA_SCHEDS.register('inverse')
@dataclass
class InverseEMAConfig:
    """The config of `EMAWarmup`."""

    type: Literal['inverse'] = 'inverse'
    power: float = 0.6667
    max_value: float = 0.9999
    inv_gamma: float = 1.0
    min_value: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_value <= self.max_value <= 1:
            raise ValueError(
                'max_value must satisfy 0 <= min_value <= max_value <= 1; got '
                f'{self.max_value} with min_value {self.min_value}'
            )
        for key in ('power', 'inv_gamma'):
            if not getattr(self, key) > 0:
                raise ValueError(f'{key} must be > 0; got {getattr(self, key)}')

    def make(self) -> EMAWarmup:
        """Return the schedule."""
        return EMAWarmup(self.inv_gamma, self.power, self.min_value, self.max_value)


@EMA_SCHEDS.register('power')
@dataclass
class PowerEMAConfig:
    """The config of `PowerEMA`; width is relative to the length of the run."""

    type: Literal['power'] = 'power'
    width: float = 0.10

    def __post_init__(self) -> None:
        power_ema_exponent(self.width)

    def make(self) -> PowerEMA:
        """Return the schedule."""
        return PowerEMA(self.width)
