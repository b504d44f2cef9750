"""Samples by number, for measuring: each from its own seed, with the classes of the pictures
they are compared with.
"""

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
    """Sample i is drawn from (seed, i) alone and has the class of the i-th reference picture (each
    class in turn without).

    `sampler` takes the place of that of `how`. Pictures are rounded to 8 bits, as a file would:
    those they are compared with were.
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
        known = experiment.sections.dataset.num_classes
        self.labels = (classes or list(range(known))) if known else None
        self.denoise = apply_guidance(denoiser, {'class_cond': known}, how) if known else denoiser
        self.sigmas, self.sampler, self.options = choose_plan(
            denoiser, how, bool(known) and how.guidance != 1, sampler=sampler
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
        drawn = generate(
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
        return round_to_bytes(drawn) if self.pictures else drawn
