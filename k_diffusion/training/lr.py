"""Learning-rate schedules, one value per optimizer step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..core.registry import Registry

Shape = Literal['linear', 'cosine']


class _WarmedLR(LRScheduler):
    """A schedule with an exponential warm-up, k = last_epoch.

    lr(k) = (1 - warmup^(k + 1)) * `_warm_lr(base_lr)`. The argument `verbose` of its subclasses has
    no effect; it keeps old calls valid.
    """

    def __init__(self, optimizer: Optimizer, warmup: float, last_epoch: int) -> None:
        _check_warmup(warmup)
        self.warmup = warmup
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """Return the rate of each group at this step."""
        warm = 1 - self.warmup ** (self.last_epoch + 1)
        return [warm * self._warm_lr(base_lr) for base_lr in self.base_lrs]

    def _warm_lr(self, base_lr: Any) -> Any:
        """Return the rate without the warm-up."""
        return base_lr


class InverseLR(_WarmedLR):
    """lr(k) = (1 - warmup^(k + 1)) * max(min_lr, base_lr * (1 + k / inv_gamma)^-power).

    Args:
        optimizer: The optimizer.
        inv_gamma: The steps that halve the rate at power 1.
        power: The exponent.
        warmup: The base of the exponential warm-up, in [0, 1).
        min_lr: The lower limit of the rate.
        last_epoch: As in torch.
        verbose: Has no effect.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        inv_gamma: float = 1.0,
        power: float = 1.0,
        warmup: float = 0.0,
        min_lr: float = 0.0,
        last_epoch: int = -1,
        verbose: object = False,
    ) -> None:
        self.inv_gamma = inv_gamma
        self.power = power
        self.min_lr = min_lr
        super().__init__(optimizer, warmup, last_epoch)

    def _warm_lr(self, base_lr: Any) -> Any:
        return max(self.min_lr, base_lr * (1 + self.last_epoch / self.inv_gamma) ** -self.power)


class ExponentialLR(_WarmedLR):
    """lr(k) = (1 - warmup^(k + 1)) * max(min_lr, base_lr * decay^(k / num_steps)).

    Args:
        optimizer: The optimizer.
        num_steps: The steps per factor `decay`.
        decay: The factor.
        warmup: The base of the exponential warm-up, in [0, 1).
        min_lr: The lower limit of the rate.
        last_epoch: As in torch.
        verbose: Has no effect.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        num_steps: float,
        decay: float = 0.5,
        warmup: float = 0.0,
        min_lr: float = 0.0,
        last_epoch: int = -1,
        verbose: object = False,
    ) -> None:
        self.num_steps = num_steps
        self.decay = decay
        self.min_lr = min_lr
        super().__init__(optimizer, warmup, last_epoch)

    def _warm_lr(self, base_lr: Any) -> Any:
        return max(self.min_lr, base_lr * self.decay ** (self.last_epoch / self.num_steps))


class ConstantLRWithWarmup(_WarmedLR):
    """lr(k) = (1 - warmup^(k + 1)) * base_lr.

    Args:
        optimizer: The optimizer.
        warmup: The base of the exponential warm-up, in [0, 1).
        last_epoch: As in torch.
        verbose: Has no effect.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup: float = 0.0,
        last_epoch: int = -1,
        verbose: object = False,
    ) -> None:
        super().__init__(optimizer, warmup, last_epoch)


class WarmupDecayLR(LRScheduler):
    """A rate that rises over `warmup_steps`, stays, then falls to `final` at `num_steps`.

    lr(k) = base_lr * min(1, (k + 1) / warmup_steps) * (1 - (1 - final) s(p)), where p is the
    completed share of the decay, 0 up to step decay_start * num_steps and 1 from num_steps on; s =
    p (linear), (1 - cos(pi p)) / 2 (cosine). The arguments are not part of the state: a run that is
    resumed with another length follows the new one.

    Args:
        optimizer: The optimizer.
        num_steps: The length of the run in steps.
        warmup_steps: The steps of the rise.
        decay_start: The share of the run after which the rate falls.
        final: The last rate as a share of the base rate.
        shape: 'linear' or 'cosine'.
        last_epoch: As in torch.

    References:
        Hägele et al. (2024), arXiv:2405.18392, on such schedules.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        num_steps: int,
        warmup_steps: int = 100,
        decay_start: float = 0.4,
        final: float = 0.02,
        shape: Shape = 'linear',
        last_epoch: int = -1,
    ) -> None:
        _check_decay(num_steps, warmup_steps, decay_start, final, shape)
        self.num_steps = num_steps
        self.warmup_steps = warmup_steps
        self.decay_start = decay_start
        self.final = final
        self.shape = shape
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """Return the rate of each group at this step."""
        warm = min(1.0, (self.last_epoch + 1) / max(1, self.warmup_steps))
        start = self.decay_start * self.num_steps
        progress = min(1.0, max(0.0, (self.last_epoch - start) / max(self.num_steps - start, 1.0)))
        s = progress if self.shape == 'linear' else (1 - math.cos(math.pi * progress)) / 2
        return [base_lr * warm * (1 - (1 - self.final) * s) for base_lr in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the schedule."""
        shape = ('num_steps', 'warmup_steps', 'decay_start', 'final', 'shape')
        return {key: value for key, value in super().state_dict().items() if key not in shape}


def set_lr_position(sched: LRScheduler, state: Mapping[str, Any]) -> None:
    """Move a schedule to the position of a saved one, and set the rates of its optimizer.

    The schedules of this module keep their own shape and base rates from the config; others load
    the whole state.

    Args:
        sched: The schedule.
        state: The saved state.
    """
    if isinstance(sched, (_WarmedLR, WarmupDecayLR)):
        sched.last_epoch = state['last_epoch']
        sched._step_count = state.get('_step_count', sched.last_epoch + 1)
        sched._last_lr = sched.get_lr()
    else:
        sched.load_state_dict(dict(state))
    for group, lr in zip(sched.optimizer.param_groups, sched.get_last_lr()):
        group['lr'] = lr


def _check_warmup(warmup: float) -> None:
    """Raise a ValueError if a warm-up is out of its range."""
    if not 0 <= warmup < 1:
        raise ValueError(
            'warmup must be >= 0 (no warm-up) and < 1 (0.99 takes some hundred steps); got '
            f'{warmup}'
        )


def _check_decay(
    num_steps: int | None, warmup_steps: int, decay_start: float, final: float, shape: str
) -> None:
    """Raise a ValueError if an argument of WarmupDecayLR is out of its range."""
    if num_steps is not None and num_steps < 1:
        raise ValueError(
            f'num_steps must be >= 1, the length of the run in optimizer steps; got {num_steps}'
        )
    if warmup_steps < 0:
        raise ValueError(
            'warmup_steps must be >= 0, a number of optimizer steps (0 disables the warm-up); got '
            f'{warmup_steps}'
        )
    if not 0 <= decay_start <= 1:
        raise ValueError(f'decay_start must be in [0, 1], a share of the run; got {decay_start}')
    if not 0 <= final <= 1:
        raise ValueError(
            f'final must be in [0, 1], the last rate as a share of the base rate; got {final}'
        )
    if shape not in get_args(Shape):
        raise ValueError(f'shape must be one of {", ".join(get_args(Shape))}; got {shape!r}')


LR_SCHEDS: Registry[type] = Registry('lr_sched type')


@LR_SCHEDS.register('constant')
@dataclass(kw_only=True)
class ConstantLRConfig:
    """The config of `ConstantLRWithWarmup`."""

    type: Literal['constant'] = 'constant'
    warmup: float = 0.0

    def __post_init__(self) -> None:
        _check_warmup(self.warmup)

    def make(self, optimizer: Optimizer, end_step: int | None = None) -> LRScheduler:
        """Return the schedule of an optimizer.

        Args:
            optimizer: The optimizer.
            end_step: The last step of the run; not used.
        """
        return ConstantLRWithWarmup(optimizer, self.warmup)


@LR_SCHEDS.register('inverse')
@dataclass(kw_only=True)
class InverseLRConfig:
    """The config of `InverseLR`."""

    type: Literal['inverse'] = 'inverse'
    inv_gamma: float = 1.0
    power: float = 1.0
    warmup: float = 0.0
    min_lr: float = 0.0

    def __post_init__(self) -> None:
        _check_warmup(self.warmup)
        if not self.inv_gamma > 0:
            raise ValueError(
                'inv_gamma must be > 0, the steps that halve the rate at power 1; got '
                f'{self.inv_gamma}'
            )

    def make(self, optimizer: Optimizer, end_step: int | None = None) -> LRScheduler:
        """Return the schedule of an optimizer.

        Args:
            optimizer: The optimizer.
            end_step: The last step of the run; not used.
        """
        return InverseLR(optimizer, self.inv_gamma, self.power, self.warmup, self.min_lr)


@LR_SCHEDS.register('exponential')
@dataclass(kw_only=True)
class ExponentialLRConfig:
    """The config of `ExponentialLR`: a factor `decay` every `num_steps` steps."""

    type: Literal['exponential'] = 'exponential'
    num_steps: float
    decay: float = 0.5
    warmup: float = 0.0
    min_lr: float = 0.0

    def __post_init__(self) -> None:
        _check_warmup(self.warmup)
        if not self.num_steps > 0:
            raise ValueError(
                f'num_steps must be > 0, the steps per factor `decay`; got {self.num_steps}'
            )

    def make(self, optimizer: Optimizer, end_step: int | None = None) -> LRScheduler:
        """Return the schedule of an optimizer.

        Args:
            optimizer: The optimizer.
            end_step: The last step of the run; not used.
        """
        return ExponentialLR(optimizer, self.num_steps, self.decay, self.warmup, self.min_lr)


@LR_SCHEDS.register('warmup-decay')
@dataclass(kw_only=True)
class WarmupDecayLRConfig:
    """The config of `WarmupDecayLR`; num_steps null means the end_step of the run."""

    type: Literal['warmup-decay'] = 'warmup-decay'
    num_steps: int | None = None
    warmup_steps: int = 100
    decay_start: float = 0.4
    final: float = 0.02
    shape: Shape = 'linear'

    def __post_init__(self) -> None:
        _check_decay(self.num_steps, self.warmup_steps, self.decay_start, self.final, self.shape)

    def make(self, optimizer: Optimizer, end_step: int | None = None) -> LRScheduler:
        """Return the schedule of an optimizer.

        Args:
            optimizer: The optimizer.
            end_step: The last step of the run, for num_steps null.

        Raises:
            ValueError: If both are missing.
        """
        num_steps = self.num_steps if self.num_steps is not None else end_step
        if num_steps is None:
            raise ValueError(
                'num_steps must be an integer for warmup-decay if the run has no end; got null. '
                'Pass end_step=..., or set num_steps in the config'
            )
        return WarmupDecayLR(
            optimizer, num_steps, self.warmup_steps, self.decay_start, self.final, self.shape
        )
