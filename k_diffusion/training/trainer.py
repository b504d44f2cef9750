"""The training loop: optimizer steps, the average of the weights, and hooks."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from ..core.devices import send_together
from ..core.errors import FolderMissing, Stop, StopAsked
from ..core.random import derive_seed
from .batches import Batch, check_parts
from .checkpoints.reading import unwrap
from .ema import ema_pairs, ema_update_dict, ema_update_pairs
from .interrupts import StopVote, on_interrupt
from .launcher import launcher_pid
from .optim import clip_gradients
from .run_state import RunState
from .sharding import local

Status = Literal['done', 'interrupted']
#: A run has diverged when more than BAD_STEPS of its last BAD_WITHIN losses are not numbers.
BAD_STEPS, BAD_WITHIN = 3, 1000


class Diverged(ValueError):
    """The loss or the weights of a run are no longer finite; no such state was saved."""


class Hook(Protocol):
    """A function of the trainer that is called after every `every` finished steps.

    All processes call it. It leaves the modes of the model (train, eval) unchanged. A long one
    polls `trainer.stop_asked()` on all processes and raises StopAsked if that is True. All
    attributes except `every` are optional.

    Attributes:
        every: The number of steps; 0 never calls it after a step.
        at_end: True also calls it when the run ends or is interrupted.
        task: The name of its result. A result that a stop prevented is made when the run resumes.
        optional: True if a disk error in it does not end the run.
        rescue: True also calls it before an error ends the run.
        see_losses: A function of the trainer and a list of (step, loss), called on all processes
            whenever losses are fetched.
        recover: A function of the trainer, called when the run has diverged. It returns True if it
            has moved the run back (`Trainer.rewind`); the run then continues.
    """

    every: int

    def __call__(self, trainer: Trainer) -> None: ...


@dataclass(eq=False, repr=False)
class Trainer(RunState):
    """The training loop: steps of an optimizer, the average of the weights, and hooks.

    Random numbers are a function of the seed and of positions in the stream of items. Each batch
    gets `step`, the number of steps before this one, and `u` (float64 [B] on the CPU): one quantile
    of the noise density per item, stratified over the whole step. The global generators are seeded
    before each forward pass. A loss that needs other small tensors on the device may have a method
    `make_inputs(batch)`, which returns them by name on the host; it then gets them on the device as
    `batch['sent']`.

    Args:
        accelerator: An accelerate.Accelerator with gradient_accumulation_steps 1.
        model: The network as accelerator.prepare returned it, weights in float32.
        loss: A function from a batch to the loss [B], which calls the model.
        optimizer: The optimizer as accelerator.prepare returned it.
        lr_sched: The learning-rate schedule, not prepared (accelerate would step it once per
            process).
        ema_sched: The decay of the average at each step.
        ema_model: A deep copy of the network before `prepare`, on the device.
        loader: The source of batches, such as `K.data.Loader`.
        hooks: Functions called after steps, see `Hook`.
        end_step: The last step; None trains until interrupted.
        grad_accum_steps: Micro-batches per step, the same number as the loader's.
        clip_norm: The largest norm of the gradient. None disables clipping, and then a loss that is
            not a number ends the run.
        seed: The seed of all random numbers.
        parts: Further objects with a state, kept in checkpoints under these keys.
        read_every: Steps between two transfers of losses from the device; hooks may fetch them
            earlier.
        stop: Called after each step; True stops the run.

    Attributes:
        step: The number of finished optimizer steps.
        items: The position in the stream of training items.
        last_loss: The loss of the last step that was fetched.
        ema_stats: The loss, averaged like the weights.
        data_seconds: The seconds that this process has waited for batches.
        last_checkpoint: The path of the newest checkpoint.
        draws: The random draws for an item. A resumed run keeps the version of its checkpoint, and
            so do a loader and a loss with an attribute of this name.

    Raises:
        ValueError: If the loader cannot share its items evenly, a weight is in half precision, or
            the accelerator accumulates gradients.
    """

    hooks: Sequence[Hook] = ()
    _: KW_ONLY
    end_step: int | None = None
    grad_accum_steps: int = 1
    clip_norm: float | None = 1.0
    read_every: int = 25
    stop: Callable[[], bool] | None = None

    def __post_init__(self) -> None:
        check_parts(self.accelerator, self.model, self.loader, self.grad_accum_steps)
        super().__post_init__()
        self.lr = self.optimizer.param_groups[0]['lr']
        self.ema_decay = 0.0
        self.data_seconds = 0.0
        self.stopping = False
        self.stopped_by: int | None = None  # the signal that requested the stop
        self.stopped = False  # True if `Stop` was raised or `stop` returned True
        self._launcher = launcher_pid()
        self._asked_to_stop = False
        self._vote = StopVote(self.accelerator.device)
        self._between_steps = True
        self._silenced: set[int] = set()
        self._parameters = list(self.model.parameters())
        self._ema_pairs = ema_pairs(unwrap(self.model), self.ema_model)

    @property
    def done(self) -> bool:
        """Return True if the run has reached its last step."""
        return self.end_step is not None and self.step >= self.end_step

    def request_stop(self, signal: int | None = None) -> None:
        """Request a stop after a finished step, the same step on all processes.

        Args:
            signal: The number of the signal that requests it.
        """
        if not self._asked_to_stop:
            self._asked_to_stop, self.stopped_by = True, signal

    def stop_asked(self) -> bool:
        """Return True once any process was asked to stop.

        Long hooks poll it on all processes, and return early.
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
        """Train up to end_step or a stop request, then call the hooks with `at_end`.

        The first Ctrl-C, SIGTERM, SIGHUP or SIGUSR1 requests a stop: the current step is finished.
        A second Ctrl-C or SIGTERM ends the run at once. If an exception ends the run of a single
        process, hooks with `rescue` are called first. Hooks that a stop prevented in the previous
        run are called at the start.

        Returns:
            'done' at end_step, else 'interrupted'.

        Raises:
            Diverged: If the losses or the weights are no longer finite.
        """
        self.model.train()
        self.stopped = False
        batches = self.loader.iterate(self.items)
        self._began = time.monotonic()
        try:
            with on_interrupt(
                self.request_stop, grace=1.0 if self.accelerator.num_processes > 1 else 0.0
            ):
                self._call_owed_hooks()
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
        """Take a step. If the loss raises Stop, end the run after the last one, return False."""
        try:
            self.train_step(batches)
            return True
        except Stop:
            for p in self._parameters:
                p.grad = None
            if self.accelerator.num_processes > 1:  # the other processes wait in this step
                raise
            self._stop_by_caller()
            self.stopping = True
            self._end_with(self.hooks if self.step else [])
            return False

    def _recover(self) -> bool:
        """Have a hook move a diverged run back to a sane checkpoint; return True on success.

        A run that was asked to stop is not recovered.
        """
        if self.stopping or self._asked_to_stop:
            return False
        return any(hook.recover(self) for hook in self.hooks if hasattr(hook, 'recover'))

    def _stop_by_caller(self) -> None:
        """Request a stop on behalf of the program that runs the training."""
        self.stopped = True
        self.request_stop()

    def _ask_caller(self) -> None:
        """Request a stop if the function `stop` returns True."""
        if self.stop is not None and not self._asked_to_stop and self.stop():
            self._stop_by_caller()

    def _rescue(self, error: Exception) -> None:
        """Save the finished steps of a run that an exception from outside ends."""
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
                except FolderMissing:  # its message reports the loss itself
                    return
                except Exception as another:
                    warnings.warn(
                        f'the steps since the last checkpoint are lost: {another}', stacklevel=2
                    )

    def train_step(self, batches: Iterator[Batch]) -> None:
        """Take one optimizer step of `grad_accum_steps` micro-batches.

        It never waits for the device.

        Args:
            batches: The iterator `loader.iterate(trainer.items)`.
        """
        quantiles = self.quantiles(self.items)
        losses = []
        for micro in range(self.grad_accum_steps):
            start = time.perf_counter()
            batch = next(batches)
            self.data_seconds += time.perf_counter() - start
            batch['u'], batch['step'] = quantiles[batch['item'] - self.items], self.step
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

    def _send_inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Send the random numbers of a micro-batch to the device, all in one copy."""
        make_inputs = getattr(self.loss, 'make_inputs', None)
        inputs = {} if make_inputs is None else make_inputs(batch)
        inputs['range'] = self.loss_by_noise.find_ranges(batch['u'])
        return send_together(inputs, self.accelerator.device)

    def _seed_dropout(self, micro: int) -> None:
        """Seed the generators of the used devices, at a tenth of the cost of torch.manual_seed.

        The seed depends on the place of the micro-batch in the step, not on the process.
        """
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        place = (rank, micro) if self.draws.version == 1 else (0, micro * processes + rank)
        seed = derive_seed(self.seed, 'dropout', self.step, *place)
        torch.default_generator.manual_seed(seed)
        if self.accelerator.device.type != 'cpu':
            torch.get_device_module(self.accelerator.device).manual_seed(seed)

    def _update(self) -> None:
        """Update the weights and their average from the gradients."""
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
        """Fetch losses, check for stop requests, and call the hooks of the step."""
        if self.done or self.step % self.read_every == 0:
            self.read_losses()
        self._watch_launcher()
        self._ask_caller()
        self.stopping = (
            self._asked_to_stop if self.accelerator.num_processes == 1 else self._vote_to_stop()
        )
        self._call_hooks()

    def _call_hooks(self) -> None:
        """Call the hooks of this step; after a stop request those with a task wait for a resume."""
        paused, last = self.stopping and not self.done, self.done or self.stopping
        if paused:
            self.owed = [_task(hook) for hook in self.hooks if self._is_due(hook) and _task(hook)]
        before, undone, step = len(self.owed), [], self.step
        for hook in self.hooks:
            if paused and _task(hook):
                continue
            if self.step != step:  # a hook has moved the run back
                return
            if self._is_due(hook) or (last and getattr(hook, 'at_end', False)):
                self._call(hook)
            else:
                undone.append(hook)
        alone = self.accelerator.num_processes == 1
        if len(self.owed) > before or (self.stopped and alone and not last):
            # A hook was interrupted by a stop request, or made one: this is the last step.
            self.owed += [_task(hook) for hook in undone if self._is_due(hook) and _task(hook)]
            self.stopping = True
            self._end_with(undone)

    def _is_due(self, hook: Hook) -> bool:
        """Return True if a hook is called after this step."""
        return bool(hook.every) and self.step % hook.every == 0

    def _end_with(self, hooks: Sequence[Hook]) -> None:
        """Call the hooks with `rescue`, which save the run, and those of `hooks` with `at_end`."""
        for hook in self.hooks:
            is_undone = getattr(hook, 'at_end', False) and any(hook is other for other in hooks)
            if getattr(hook, 'rescue', False) or (is_undone and not _task(hook)):
                self._call(hook)

    def _call_owed_hooks(self) -> None:
        """Call the hooks that a stop prevented before the run was saved."""
        tasks, self.owed = self.owed, []
        for hook in self.hooks:
            if _task(hook) in tasks:
                self._call(hook)
        self.stopping = bool(self.owed)
        if tasks and self.done and not self.stopping:
            self._end_with([])

    def _watch_launcher(self) -> None:
        """Request a stop if the launcher that started this process has ended."""
        if self._asked_to_stop or launcher_pid() == self._launcher:
            return
        warnings.warn(
            f'the launcher (process {self._launcher}) is gone; the run is saved and stops',
            stacklevel=2,
        )
        self.request_stop()

    def _call(self, hook: Hook) -> None:
        """Call a hook; report the first disk error of an optional hook, and continue."""
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

    def _vote_to_stop(self) -> bool:
        """Return True on all processes at the same step if any of them was asked to stop.

        On a GPU the answer is that of the step before, so that nothing waits for the device.
        """
        before = self._vote.result()
        self._vote.send(self._asked_to_stop)
        return self._vote.result() or before if self.accelerator.device.type == 'cpu' else before

    def read_losses(self) -> None:
        """Fetch the losses since the last call into `last_loss` and `ema_stats`.

        It waits once for the device and exchanges data once between the processes, all of which
        must call it at the same step. A loss that is not a number is reported in a warning and left
        out.

        Raises:
            Diverged: If more than three of the last 1,000 losses were not numbers, or any one
                without clipping.
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
                self._report_bad_step(value, step)

    def _report_bad_step(self, value: float, step: int) -> None:
        """Warn of a loss that is not a number; raise Diverged if there are too many of them."""
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

    def check_finite(self) -> None:
        """Check the losses so far, and the weights, which the last update may have made infinite.

        Raises:
            Diverged: If one is not finite.
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
        """Return the error for a diverged run, with the last good checkpoint and a remedy."""
        path = self.last_checkpoint
        for hook in self.hooks:
            if hasattr(hook, 'go_back'):
                path = hook.go_back(self)
        if path is None and self.last_checkpoint is not None:
            return Diverged(
                f'{what}; no checkpoint was saved with a sane loss: lower the learning rate and '
                'start again with another name'
            )
        good = (
            'no checkpoint was saved before'
            if path is None
            else f'the last good checkpoint is {path}'
        )
        return Diverged(
            f'{what}; {good}: lower the learning rate, or look for broken items in the data, and '
            'run again'
        )


def _task(hook: Hook) -> str:
    """Return the name of the result of a hook, '' for one without."""
    return str(getattr(hook, 'task', ''))
