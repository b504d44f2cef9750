"""Draw demo grids and list skipped pictures, without effect on the randomness of training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...config import Experiment
from ...core.files import whole_file
from ...core.images import make_grid, save_image
from ...core.modules import eval_mode
from ...core.names import escape_name
from ...core.random import derive_seed
from ...core.views import show_tensors
from ...generation import apply_guidance, choose_plan, choose_sampling, generate
from ...training import StopAsked, Trainer


@dataclasses.dataclass
class DemoHook:
    """Draw `n` samples of the averaged model as NAME_demo_STEP.png.

    The noises and classes are the same each time.
    """

    every: int
    folder: Path
    name: str
    denoiser: nn.Module
    experiment: Experiment
    n: int
    batch_size: int
    say: Callable[[str], None]
    steps: int = 50
    conditions: Mapping[str, Tensor] = dataclasses.field(
        default_factory=dict
    )  # conditions besides the classes, one for each sample
    null: Mapping[str, Any] = dataclasses.field(
        default_factory=dict
    )  # what stands for no condition
    at_end = optional = True
    task = 'demo grid'

    def __call__(self, trainer: Trainer) -> None:
        trainer.check_finite()
        if not self.every:
            return
        try:
            images = self.draw(trainer)
        except StopAsked:
            self.say(
                f'the demo grid of step {trainer.step:,} is cancelled by a stop request; it is '
                'drawn when the run is resumed'
            )
            raise
        if trainer.accelerator.is_main_process:
            path = self.folder / f'{self.name}_demo_{trainer.step:08}.png'
            pictures = self.experiment.gives_pictures
            save_image(
                path, make_grid(images) if pictures else make_grid(show_tensors(images), padding=2)
            )
            self.say(f'demo grid: {path}')

    def draw(self, trainer: Trainer) -> torch.Tensor:
        """Return the samples [n, C, ...]; each process of `trainer` draws its share.

        Raises:
            StopAsked: A stop was requested; it is raised on all processes at one step of the
                sampler.
        """
        num_classes = self.experiment.sections.dataset.num_classes
        mine, n = share_of(self.n, trainer.accelerator)
        cond = {'class_cond': torch.tensor(mine) % num_classes} if num_classes else {}
        cond.update({key: value[mine] for key, value in self.conditions.items()})
        few = getattr(self.denoiser, 'flow_map', False)
        sampling = choose_sampling(
            vars(self.experiment.sections.sampling), steps=None if few else self.steps
        )
        denoise = apply_guidance(self.denoiser, self.null, sampling) if self.null else self.denoiser
        sigmas, sampler, options = choose_plan(
            self.denoiser, sampling, bool(self.null) and sampling.guidance != 1
        )

        def look_up(*_: Any) -> None:
            if trainer.stop_asked():
                raise StopAsked

        with eval_mode(self.denoiser), trainer.accelerator.autocast():
            images = generate(
                denoise,
                self.experiment.shape,
                sigmas,
                sampler,
                [derive_seed(trainer.seed, 'demo', i) for i in mine],
                cond,
                batch_size=self.batch_size,
                device=trainer.accelerator.device,
                callback=look_up,
                options=options,
                decode=self.experiment.decoder(trainer.accelerator.device),
            )
        return gather_in_order(images, n, trainer.accelerator)


def share_of(n: int, accelerator: Any) -> tuple[list[int], int]:
    """Return which of n items this process of `accelerator` draws, and n.

    Each process draws equally many; the last items are drawn twice if necessary.
    """
    world = accelerator.num_processes
    return [
        min(i, n - 1) for i in range(accelerator.process_index, -(-n // world) * world, world)
    ], n


def gather_in_order(mine: torch.Tensor, n: int, accelerator: Any) -> torch.Tensor:
    """Return the shares of all processes in the order of `share_of`, [n, ...] on the CPU.

    Args:
        mine: The share of this process.
        n: The number of items.
        accelerator: accelerate's Accelerator.
    """
    if accelerator.num_processes == 1:
        return mine
    together = accelerator.gather(mine.to(accelerator.device)).cpu()
    return (
        together.unflatten(0, (accelerator.num_processes, len(mine)))
        .transpose(0, 1)
        .flatten(0, 1)[:n]
    )


@dataclasses.dataclass
class SkippedNotice:
    """List unreadable pictures in NAME_skipped.txt, name the first ten and count the others."""

    every: int
    skipped: list[tuple[str, str]]
    path: Path
    say: Callable[[str], None]
    reported_count: int = 0
    at_end = optional = True

    def __call__(self, trainer: Trainer) -> None:
        if len(self.skipped) == self.reported_count or not trainer.accelerator.is_main_process:
            return
        for path, reason in self.skipped[self.reported_count : 10]:
            self.say(f'skipped {path}: {reason}')
        if len(self.skipped) > 10:
            self.say(f'skipped {len(self.skipped):,} pictures in all, listed in {self.path}')
        with whole_file(self.path, sync=False) as temporary:
            temporary.write_text(
                ''.join(
                    f'{escape_name(path)}: {escape_name(reason)}\n' for path, reason in self.skipped
                ),
                'utf-8',
            )
        self.reported_count = len(self.skipped)
