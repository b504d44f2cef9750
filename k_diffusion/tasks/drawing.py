"""Draw samples by number for measuring, each from its own seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..config import Experiment
from ..core.images import round_to_bytes
from ..core.protocols import DenoiseFn
from ..core.random import derive_seed
from ..generation import SamplingConfig, apply_guidance, choose_plan, generate


class Draw:
    """Draw samples for measuring: sample i depends on (seed, i) and its class alone.

    Pictures are rounded to 8 bits, like the files that they are compared with.

    Args:
        denoiser: The model.
        experiment: Its experiment.
        how: The sampling settings.
        seed: The seed.
        classes: The classes of the reference pictures, which samples use in turn; None: each class
            in turn.
        batch_size: Samples per batch.
        device: The device of the model.
        sampler: A sampler that replaces the one of `how`.

    Raises:
        ValueError: The model has conditions besides classes.
    """

    def __init__(
        self,
        denoiser: DenoiseFn,
        experiment: Experiment,
        how: SamplingConfig,
        seed: int,
        classes: list[int] | None,
        batch_size: int,
        device: torch.device,
        sampler: Any = None,
    ) -> None:
        if experiment.sections.conditions:
            kinds = ', '.join(entry.type for entry in experiment.sections.conditions)
            raise ValueError(
                'the model must have no conditions besides classes to be measured; it has '
                f'{kinds}. Draw samples with '
                'K.tasks.sample and measure their folder'
            )
        num_classes = experiment.sections.dataset.num_classes
        self.labels = (classes or list(range(num_classes))) if num_classes else None
        self.denoise = (
            apply_guidance(denoiser, {'class_cond': num_classes}, how) if num_classes else denoiser
        )
        self.sigmas, self.sampler, self.options = choose_plan(
            denoiser, how, bool(num_classes) and how.guidance != 1, sampler=sampler
        )
        self.shape, self.decode = experiment.shape, experiment.decoder(device)
        self.pictures = experiment.gives_pictures
        self.seed, self.batch_size, self.device = seed, batch_size, device

    def __call__(self, items: Sequence[int], callback: Callable[..., None] | None = None) -> Tensor:
        cond = (
            None
            if self.labels is None
            else {'class_cond': torch.tensor([self.labels[i % len(self.labels)] for i in items])}
        )
        samples = generate(
            self.denoise,
            self.shape,
            self.sigmas,
            self.sampler,
            [derive_seed(self.seed, 'sample', i) for i in items],
            cond,
            self.decode,
            callback,
            batch_size=self.batch_size,
            device=self.device,
            options=self.options,
        )
        return round_to_bytes(samples) if self.pictures else samples
