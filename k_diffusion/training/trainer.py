"""The training loop: a loss, a loader and hooks in; weights, their average and checkpoints out."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..core.devices import send_together
from ..core.draws import Draws
from ..core.errors import Gone, Stop, StopAsked
from ..core.random import derive_seed, generator
from .batches import Batch, BatchSource, Part, check_parts
from .checkpoints.reading import load_weights, unwrap
from .ema import EMASched, ema_pairs, ema_update_dict, ema_update_pairs, set_ema_position
from .interrupts import StopVote, on_interrupt
from .launcher import launcher_pid
from .lr import set_lr_position
from .noise_levels import LossByNoise
from .optim import clip_gradients
from .optimizer_state import load_optimizer, parameter_names
from .sharding import local

Status = Literal['done', 'interrupted']
#: How many of the last so many steps may give a loss that is no number; one more, and the run has
#: diverged.
BAD_STEPS, BAD_WITHIN = 3, 1000


class Diverged(ValueError):
    """The loss or the weights are no longer finite numbers; nothing was saved since they were."""


class Hook(Protocol):
    """A function of the trainer that is called after every `every`-th finished step (0: never), on
    all processes.

    It leaves the model's modes as they were. One that takes long polls `trainer.stop_asked()` on
    all processes and raises StopAsked where that is True.

    Attributes:
        every: The number of steps.
        at_end: True: it is also called when the run ends or is interrupted. (This and the others
            may be missing.)
        task: The name of what it makes; what a stop prevented is made when the run is resumed.
        optional: True: a full disk in it does not end the run.
        rescue: True: it is called before a fault ends the run.
        see_losses: A function of the trainer and a list of (step, loss), called whenever losses
            are fetched, on all processes.
        recover: A function of the trainer, called where the run has diverged; it returns True
            where it has taken the run back (`Trainer.rewind`), which then goes on.
    """

    every: int

    def __call__(self, trainer: Trainer) -> None: ...


@dataclass(eq=False, repr=False)
class Trainer:
    """The training loop: steps of an optimizer, the average of the weights, and hooks.

    What is drawn is a function of the seed and of positions in the stream of items: each batch is
    given `u` (float64 [B] on the CPU, one quantile of the noise density per item, stratified over
    the whole step), and the global generators are seeded before each forward pass. A loss that
    needs other small tensors on the device may have a method `make_inputs(batch)`, which returns
    them by name on the host; it is given them on the device as `batch['sent']`.

    Args:
        accelerator: An accelerate.Accelerator, its own gradient accumulation left at 1.
        model: The network as accelerator.prepare returned it, weights in float32.
        loss: A function from a batch to the loss [B], which calls the model.
        optimizer: Prepared.
        lr_sched: Not prepared: accelerate would step it once per process.
        ema_sched: Gives the decay of the average at each step.
        ema_model: A deep copy of the network as it was before `prepare`, on the device.
        loader: Where batches come from, `K.data.Loader` for example.
        hooks: Called after steps, see `Hook`.
        end_step: The last step; None: until interrupted.
        grad_accum_steps: Micro-batches per step; the loader must be made with the same number.
        clip_norm: The largest norm of the gradient; None: it is not clipped, and a loss that is not
            a number ends the run.
        seed: Of all that is drawn.
        parts: What else is kept in checkpoints, under these keys.
        read_every: After how many steps losses, which stay on the device, are fetched; hooks may
            ask earlier.
        stop: Called after each step; True stops the run.

    Attributes:
        step: The optimizer steps that are finished.
        items: The position in the stream of training items.
        last_loss: The loss of the last step that was fetched.
        ema_stats: The loss, averaged like the weights.
        data_seconds: The time for which this process has waited for batches.
        last_checkpoint: The path of the newest checkpoint.
        draws: What is drawn for an item. A run that goes on keeps the version of its checkpoint;
            so do a loader and a loss that have an attribute of this name.

    Raises:
        ValueError: The loader cannot share its items evenly, a weight is in half precision, or the
            accelerator accumulates gradients.
    """

    accelerator: Any
    model: nn.Module
    loss: Callable[[Batch], Tensor]
    optimizer: Optimizer
    lr_sched: LRScheduler
    ema_sched: EMASched
    ema_model: nn.Module
    loader: BatchSource
    hooks: Sequence[Hook] = ()
    _: KW_ONLY
    end_step: int | None = None
    grad_accum_steps: int = 1
    clip_norm: float | None = 1.0
    seed: int = 0
    parts: Mapping[str, Part] = field(default_factory=dict)
    read_every: int = 25
    stop: Callable[[], bool] | None = None

    def __post_init__(self) -> None:
        check_parts(self.accelerator, self.model, self.loader, self.grad_accum_steps)
        self.step, self.items, self.last_loss = 0, 0, math.nan
        self.lr = self.optimizer.param_groups[0]['lr']
        self.ema_decay = 0.0
        self.ema_stats: dict[
            str, float
        ] = {}  # the loss, averaged like the weights (and LOSS_SINCE)
        self.demo_gen, self.draws = generator(self.seed, 'demo'), Draws(self.seed)
        self.loss_by_noise = LossByNoise(device=self.accelerator.device)
        self.bad_steps: list[int] = []  # those lately whose loss was no number
        self.data_seconds = 0.0
        self.last_checkpoint: Path | None = None
        self.stopping = False
        self.stopped_by: int | None = None  # the signal that asked for it
        self.stopped = False  # `Stop` was raised or `stop` said so
        self.owed: list[str] = []  # tasks of hooks that a stop prevented
        self._launcher = launcher_pid()
        self._asked_to_stop = False
        self._vote = StopVote(self.accelerator.device)
        self._between_steps = True
        self._silenced: set[int] = set()
        self._unread: list[tuple[Tensor, float]] = []
        self._parameters = list(self.model.parameters())
        self._ema_pairs = ema_pairs(unwrap(self.model), self.ema_model)
        self._elapsed = 0.0
        self._began: float | None = None

    @property
    def done(self) -> bool:
        return self.end_step is not None and self.step >= self.end_step

    @property
    def elapsed(self) -> float:
        """Seconds of training, those before a resume included."""
        return self._elapsed + (0.0 if self._began is None else time.monotonic() - self._began)

    def request_stop(self, signal: int | None = None) -> None:
        """Ask to stop after a finished step; several processes stop all at one step.

        Args:
            signal: The number of the signal that asks.
        """
        if not self._asked_to_stop:
            self._asked_to_stop, self.stopped_by = True, signal

    def stop_asked(self) -> bool:
        """Return True once any process was asked to stop; long hooks poll it on every process
        and return early.
        """
        if self.stopping:
            return True
        self._watch_launcher()
        self._ask_caller()
        if self.accelerator.num_processes == 1:
            return self._asked_to_stop
        self._vote.send(self._asked_to_stop)
        return self._vote.result()

    def run(self) -> Status:
        """Train up to end_step, or until it is asked to stop, then call the hooks that run
        `at_end`.

        The first Ctrl-C, SIGTERM, SIGHUP or SIGUSR1 asks: the step under way is finished. A second
        Ctrl-C or SIGTERM ends it at once. Where something else ends it, hooks with a true attribute
        `rescue` are called first, if there is one process. What a stop prevented in the run before
        is made up for at the start.

        Returns:
            'done' at end_step, else 'interrupted'.

        Raises:
            Diverged: The losses or the weights are no longer finite.
        """
        self.model.train()
        self.stopped = False
        batches = self.loader.iterate(self.items)
        self._began = time.monotonic()
        try:
            with on_interrupt(
                self.request_stop, grace=1.0 if self.accelerator.num_processes > 1 else 0.0
            ):
                self._make_up()
                while not self.done and not self.stopping:
                    try:
                        if self._take_step(batches):
                            self._after_step()
                    except Diverged:
                        if not self._recover():
                            raise
        except Exception as error:
            self._rescue(error)
            raise
        finally:
            if isinstance(batches, Generator):
                batches.close()
            self._elapsed, self._began = self.elapsed, None
            self.stopping = self._asked_to_stop = False
            self._vote = StopVote(self.accelerator.device)
        return 'done' if self.done else 'interrupted'

    def _take_step(self, batches: Iterator[Batch]) -> bool:
        """Take a step; return False where the loss raised Stop, and end the run after the last
        step.
        """
        try:
            self.train_step(batches)
            return True
        except Stop:
            for p in self._parameters:
                p.grad = None
            if self.accelerator.num_processes > 1:  # (the others wait in this step)
                raise
            self._stop_by_caller()
            self.stopping = True
            self._end_with(self.hooks if self.step else [])
            return False

    def _recover(self) -> bool:
        """Return True where a hook has taken the run, which has diverged, back to where it was
        sane; one that is to stop ends as diverged.
        """
        if self.stopping or self._asked_to_stop:
            return False
        return any(hook.recover(self) for hook in self.hooks if hasattr(hook, 'recover'))

    def rewind(self, state: Mapping[str, Any], source: Path | None = None) -> None:
        """Take weights, moments, averages and the step of a checkpoint; the stream of items goes
        on where it is.

        Args:
            state: The checkpoint.
            source: Its path, for messages.
        """
        items, elapsed, self._unread = self.items, self._elapsed, []
        self.load_state_dict(state, source)
        self.items, self._elapsed = items, elapsed

    def _stop_by_caller(self) -> None:
        self.stopped = True
        self.request_stop()

    def _ask_caller(self) -> None:
        if self.stop is not None and not self._asked_to_stop and self.stop():
            self._stop_by_caller()

    def _rescue(self, error: Exception) -> None:
        """Saves the finished steps of a run that ends by a fault which is not its own."""
        if (
            isinstance(error, Diverged)
            or not self._between_steps
            or self.accelerator.num_processes > 1
        ):
            return
        for hook in self.hooks:
            if getattr(hook, 'rescue', False):
                try:
                    hook(self)
                except Gone:  # (the error says so itself)
                    return
                except Exception as another:
                    warnings.warn(
                        f'the steps since the last checkpoint are lost: {another}', stacklevel=2
                    )

    def train_step(self, batches: Iterator[Batch]) -> None:
        """Take one optimizer step of `grad_accum_steps` micro-batches; nothing in it waits for the
        device.

        Args:
            batches: What `loader.iterate(trainer.items)` gives.
        """
        quantiles = self.quantiles(self.items)
        losses = []
        for micro in range(self.grad_accum_steps):
            asked = time.perf_counter()
            batch = next(batches)
            self.data_seconds += time.perf_counter() - asked
            batch['u'] = quantiles[batch['item'] - self.items]
            batch['sent'] = self._send_inputs(batch)
            self._seed_dropout(micro)
            last = micro == self.grad_accum_steps - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                each = self.loss(batch)
                loss = each.mean() / self.grad_accum_steps
                self.accelerator.backward(loss)
            losses.append(loss.detach())
            self.loss_by_noise.add(batch['sent']['range'], each)
        self._between_steps = False
        self._update()
        self.loss_by_noise.end_step()
        self._unread.append(
            (losses[0] if len(losses) == 1 else torch.stack(losses).sum(), self.ema_decay)
        )
        self.step += 1
        self.items += self.loader.items_per_step
        self._between_steps = True

    def quantiles(self, items: int) -> Tensor:
        """[G] in (0, 1), one in each of G equal strata, in random order: for the G items of the
        step that begins at a position of the stream.
        """
        return self.draws.quantiles(items, self.loader.items_per_step)

    def _send_inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Send what the host draws for a micro-batch to the device, all by one copy."""
        make_inputs = getattr(self.loss, 'make_inputs', None)
        inputs = {} if make_inputs is None else make_inputs(batch)
        inputs['range'] = self.loss_by_noise.find_ranges(batch['u'])
        return send_together(inputs, self.accelerator.device)

    def _set_draws(self, version: int) -> None:
        """Draw as a version does, here, in the loader and in the loss."""
        for part in (self, self.loader, self.loss):
            draws = getattr(part, 'draws', None)
            if isinstance(draws, Draws):
                setattr(part, 'draws', replace(draws, version=version))  # noqa: B010

    def _seed_dropout(self, micro: int) -> None:
        """torch.manual_seed for the devices in use alone, which costs a tenth of it."""
        seed = derive_seed(self.seed, 'dropout', self.step, self.accelerator.process_index, micro)
        torch.default_generator.manual_seed(seed)
        if self.accelerator.device.type != 'cpu':
            torch.get_device_module(self.accelerator.device).manual_seed(seed)

    def _update(self) -> None:
        if self.clip_norm is not None:
            clip_gradients(self.accelerator, self._parameters, self.clip_norm)
        self.lr = self.optimizer.param_groups[0]['lr']
        self.optimizer.step()
        for p in self._parameters:
            p.grad = None
        self.lr_sched.step()
        self.ema_decay = self.ema_sched.get_value()
        ema_update_pairs(self._ema_pairs, self.ema_decay)
        self.ema_sched.step()

    def _after_step(self) -> None:
        if self.done or self.step % self.read_every == 0:
            self.read_losses()
        self._watch_launcher()
        self._ask_caller()
        self.stopping = (
            self._asked_to_stop if self.accelerator.num_processes == 1 else self._agreed()
        )
        self._call_hooks()

    def _call_hooks(self) -> None:
        """Call the hooks of this step; a stop leaves those with a task to the resume."""
        paused, last = self.stopping and not self.done, self.done or self.stopping
        if paused:
            self.owed = [_task(hook) for hook in self.hooks if self._is_due(hook) and _task(hook)]
        before, left, step = len(self.owed), [], self.step
        for hook in self.hooks:
            if paused and _task(hook):
                continue
            if self.step != step:  # one of them has taken the run back
                return
            if self._is_due(hook) or (last and getattr(hook, 'at_end', False)):
                self._call(hook)
            else:
                left.append(hook)
        alone = self.accelerator.num_processes == 1
        if len(self.owed) > before or (self.stopped and alone and not last):
            # A stop was asked of one that worked, or by one: this is the last step.
            self.owed += [_task(hook) for hook in left if self._is_due(hook) and _task(hook)]
            self.stopping = True
            self._end_with(left)

    def _is_due(self, hook: Hook) -> bool:
        return bool(hook.every) and self.step % hook.every == 0

    def _end_with(self, hooks: Sequence[Hook]) -> None:
        """Call what saves the run, and those of these hooks that are called at its end."""
        for hook in self.hooks:
            left = getattr(hook, 'at_end', False) and any(hook is other for other in hooks)
            if getattr(hook, 'rescue', False) or (left and not _task(hook)):
                self._call(hook)

    def _make_up(self) -> None:
        """Call the hooks that a stop prevented before the checkpoint that was loaded was saved."""
        owed, self.owed = self.owed, []
        for hook in self.hooks:
            if _task(hook) in owed:
                self._call(hook)
        self.stopping = bool(self.owed)
        if owed and self.done and not self.stopping:
            self._end_with([])

    def _watch_launcher(self) -> None:
        """Ask for a stop where the launcher that started this process is gone."""
        if self._asked_to_stop or launcher_pid() == self._launcher:
            return
        warnings.warn(
            f'the launcher (process {self._launcher}) is gone; the run is saved and stops',
            stacklevel=2,
        )
        self.request_stop()

    def _call(self, hook: Hook) -> None:
        """A hook that shows a run (`optional`) and meets a fault of the disk does not end it:
        that is told once.
        """
        try:
            hook(self)
        except StopAsked:
            self.owed.append(_task(hook))
        except Stop:
            self._stop_by_caller()
        except OSError as error:
            if not getattr(hook, 'optional', False):
                raise
            if id(hook) not in self._silenced:
                self._silenced.add(id(hook))
                warnings.warn(
                    f'{type(hook).__name__} failed at step {self.step} ({error.strerror or error}'
                    f'{f": {error.filename}" if error.filename else ""}); training goes on',
                    stacklevel=2,
                )

    def _agreed(self) -> bool:
        """Return whether any process was asked to stop: one answer on all of them at one step,
        without a wait for a GPU.

        (There the answer is that of the step before, which has arrived by now.)
        """
        before = self._vote.result()
        self._vote.send(self._asked_to_stop)
        return self._vote.result() or before if self.accelerator.device.type == 'cpu' else before

    def read_losses(self) -> None:
        """Fetch the losses since the last call into `last_loss` and `ema_stats`.

        One wait for the device and one exchange between the processes, all of which must call it at
        the same step. A step whose loss is not a number is named in a warning and left out.

        Raises:
            Diverged: More than three of the last 1,000 losses were not numbers, or one was and
                gradients are not clipped.
        """
        if not self._unread:
            return
        unread, self._unread = self._unread, []
        values = self.accelerator.reduce(
            torch.stack([loss for loss, _ in unread]).float(), 'mean'
        ).tolist()
        losses = list(enumerate(values, self.step + 1 - len(values)))
        for hook in self.hooks:
            if hasattr(hook, 'see_losses'):
                hook.see_losses(self, losses)
        for (step, value), (_, decay) in zip(losses, unread):
            if math.isfinite(value):
                ema_update_dict(self.ema_stats, {'loss': value}, decay)
                self.last_loss = value
            else:
                self._met_bad_step(value, step)

    def _met_bad_step(self, value: float, step: int) -> None:
        self.bad_steps = [*(bad for bad in self.bad_steps if bad > step - BAD_WITHIN), step]
        if self.clip_norm is None or len(self.bad_steps) > BAD_STEPS:
            times = (
                f', as at {len(self.bad_steps) - 1} others of the last {BAD_WITHIN}'
                if len(self.bad_steps) > 1
                else ''
            )
            raise self._diverged(f'the loss is {value} at step {step}{times}')
        first = self.items_of(step)
        warnings.warn(
            f'the loss is {value} at step {step} (items {first:,} to '
            f'{first + self.loader.items_per_step - 1:,} of the stream); '
            'its gradient is left out and training goes on',
            stacklevel=2,
        )

    def items_of(self, step: int) -> int:
        """Return the position in the stream where one of the last steps began."""
        return self.items - (self.step - step + 1) * self.loader.items_per_step

    def check_finite(self) -> None:
        """Check the losses so far and the weights, which a last update can leave infinite.

        Raises:
            Diverged: One is not a finite number.
        """
        self.read_losses()
        finite = (
            torch.stack([local(p).detach().norm() for p in self._parameters])
            .isfinite()
            .all()
            .float()
        )
        if self.accelerator.reduce(finite, 'mean').item() < 1:
            raise self._diverged(f'the weights are not finite after step {self.step}')

    def _diverged(self, what: str) -> Diverged:
        saved = self.last_checkpoint
        for hook in self.hooks:
            if hasattr(hook, 'go_back'):
                saved = hook.go_back(self)
        if saved is None and self.last_checkpoint is not None:
            return Diverged(
                f'{what}; no checkpoint was saved with a loss in keeping with those '
                'before: lower the learning rate and begin anew with another name'
            )
        good = (
            'no checkpoint was saved before'
            if saved is None
            else f'the last good checkpoint is {saved}'
        )
        return Diverged(
            f'{what}; {good}: lower the learning rate, or look for broken items in the data, and '
            'run again'
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the whole run, under the original's keys and a few more.

        Call it on every process.
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
        """Go on from a checkpoint, of ours or of the original (whose `step` gives the data position
        too).

        Rates and schedules stay those of this trainer; the checkpoint gives the position in them.

        Args:
            state: The checkpoint.
            source: Its path, for messages.
            reset_ema: Start the average anew from the weights.
            reset_optimizer: Start the optimizer's moments anew.

        Raises:
            ValueError: It does not fit.
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
        items = state.get('items')  # (the original's have none)
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


def _task(hook: Hook) -> str:
    """Return the name of what a hook makes, '' for one that is not made up for."""
    return str(getattr(hook, 'task', ''))
