"""The parts and counters of a training run, and what checkpoints keep of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..core.draws import Draws
from ..core.random import generator
from .batches import Batch, BatchSource, Part
from .checkpoints.reading import load_weights, unwrap
from .checkpoints.retention import LOSS_SINCE
from .ema import EMASched, set_ema_position
from .lr import set_lr_position
from .noise_levels import LossByNoise
from .optimizer_state import load_optimizer, parameter_names


@dataclass(eq=False, repr=False)
class RunState:
    """The part of `Trainer` that checkpoints keep; see there for the arguments and attributes."""

    accelerator: Any
    model: nn.Module
    loss: Callable[[Batch], Tensor]
    optimizer: Optimizer
    lr_sched: LRScheduler
    ema_sched: EMASched
    ema_model: nn.Module
    loader: BatchSource
    seed: int = field(default=0, kw_only=True)
    parts: Mapping[str, Part] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        self.step, self.items, self.last_loss = 0, 0, math.nan
        self.ema_stats: dict[str, float] = {}  # may also hold the key LOSS_SINCE
        self.demo_gen, self.draws = generator(self.seed, 'demo'), Draws(self.seed)
        self.loss_by_noise = LossByNoise(device=self.accelerator.device)
        self.bad_steps: list[int] = []  # recent steps whose loss was not a number
        self.owed: list[str] = []  # tasks of hooks that a stop prevented
        self.last_checkpoint: Path | None = None
        self._unread: list[tuple[Tensor, float]] = []  # losses on the device, and their EMA decays
        self._elapsed = 0.0
        self._began: float | None = None

    @property
    def elapsed(self) -> float:
        """Return the seconds of training, including those before a resume."""
        return self._elapsed + (0.0 if self._began is None else time.monotonic() - self._began)

    def quantiles(self, items: int) -> Tensor:
        """Return the quantiles of the noise density for the items of one step.

        Args:
            items: The position in the stream where the step begins.

        Returns:
            [G] in (0, 1) for the G items of the step: one in each of G equal strata, in random
                order.
        """
        return self.draws.quantiles(items, self.loader.items_per_step)

    def items_of(self, step: int) -> int:
        """Return the position in the stream where one of the last steps began.

        Args:
            step: The step.
        """
        return self.items - (self.step - step + 1) * self.loader.items_per_step

    def state_dict(self) -> dict[str, Any]:
        """Return the whole run, under the original's keys and a few more.

        All processes must call it.
        """
        scaler = self.accelerator.scaler
        return {
            'model': unwrap(self.model).state_dict(),
            'model_ema': self.ema_model.state_dict(),
            'opt': self.optimizer.state_dict(),
            'opt_names': parameter_names(unwrap(self.model), self.optimizer.param_groups),
            'sched': self.lr_sched.state_dict(),
            'ema_sched': self.ema_sched.state_dict(),
            'epoch': self.loader.epoch(self.items),
            'step': self.step,
            'gns_stats': None,
            'ema_stats': dict(self.ema_stats),
            'demo_gen': self.demo_gen.get_state(),
            'elapsed': self.elapsed,
            'items': self.items,
            'seed': self.seed,
            'draws': self.draws.version,
            'scaler': None if scaler is None else scaler.state_dict(),
            'loss_by_noise': self.loss_by_noise.state_dict(self.accelerator),
            'bad_steps': list(self.bad_steps),
            'owed': list(self.owed),
            **{name: part.state_dict() for name, part in self.parts.items()},
        }

    def load_state_dict(
        self,
        state: Mapping[str, Any],
        source: Path | None = None,
        reset_ema: bool = False,
        reset_optimizer: bool = False,
    ) -> None:
        """Continue from a checkpoint of this package or of the original.

        Rates and schedules stay those of this trainer; the checkpoint gives the position in them.
        The checkpoints of the original give the position in the data by their step.

        Args:
            state: The checkpoint.
            source: Its path, for messages.
            reset_ema: Restart the average from the weights.
            reset_optimizer: Restart the moments of the optimizer.

        Raises:
            ValueError: If it does not fit.
        """
        name = source or 'the checkpoint'
        load_weights(unwrap(self.model), state['model'], name)
        load_weights(self.ema_model, state['model' if reset_ema else 'model_ema'], name)
        if not reset_optimizer:
            load_optimizer(self.optimizer, unwrap(self.model), state, name)
        set_lr_position(self.lr_sched, state['sched'])
        if not reset_ema:
            set_ema_position(self.ema_sched, state['ema_sched'])
        self.step = state['step']
        items = state.get('items')  # missing in checkpoints of the original
        self.items = self.step * self.loader.items_per_step if items is None else items
        self.ema_stats = dict(state.get('ema_stats') or {})
        self._set_draws(state.get('draws') or 1)
        self._elapsed = state.get('elapsed', 0.0)
        self.bad_steps = list(state.get('bad_steps') or [])
        self.owed = list(state.get('owed') or [])
        if state.get('loss_by_noise'):
            self.loss_by_noise.load_state_dict(state['loss_by_noise'], self.accelerator)
        if state.get('demo_gen') is not None:
            self.demo_gen.set_state(state['demo_gen'])
        if self.accelerator.scaler is not None and state.get('scaler'):
            self.accelerator.scaler.load_state_dict(state['scaler'])
        for key, part in self.parts.items():
            if state.get(key) is not None:
                part.load_state_dict(state[key])
        self.last_checkpoint = source

    def begin_losses(self) -> None:
        """Restart the averages of the loss, which means something else from now on.

        Parts that compare losses with earlier ones have a method `forget_losses`.
        """
        self.ema_stats = {LOSS_SINCE: float(self.step)}
        self.loss_by_noise = LossByNoise(device=self.accelerator.device)
        for part in self.parts.values():
            if hasattr(part, 'forget_losses'):
                part.forget_losses()

    def rewind(self, state: Mapping[str, Any], source: Path | None = None) -> None:
        """Load a checkpoint, but keep the position in the stream of items and the elapsed time.

        Args:
            state: The checkpoint.
            source: Its path, for messages.
        """
        items, elapsed, self._unread = self.items, self._elapsed, []
        self.load_state_dict(state, source)
        self.items, self._elapsed = items, elapsed

    def _set_draws(self, version: int) -> None:
        """Set the version of the random draws of the run, its loader and its loss."""
        for part in (self, self.loader, self.loss):
            draws = getattr(part, 'draws', None)
            if isinstance(draws, Draws):
                setattr(part, 'draws', replace(draws, version=version))  # noqa: B010
