"""Choose the scale and the interval of guidance by the quality of samples."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import Experiment, find_checkpoint
from ..core.protocols import DenoiseFn
from ..core.random import derive_seed
from ..evaluation import cache_folder, fid_with_error, kid_with_error, reference_features
from ..generation import SamplingConfig
from ..sampling import Calibration
from .drawing import Draw
from .reference import choose_pictures, classes_of, make_extractor, open_reference

#: The scales of the candidates.
SCALES = (1.0, 1.5, 2.0, 3.0, 4.5, 7.0)
#: Their intervals besides all levels and the config's, in standard deviations of the data.
INTERVALS = ((0.6, 2.4), (0.3, 6.0))
#: The share of the samples that compares all candidates; the finalists are compared by all.
FIRST_SHARE, FINALISTS = 0.25, 4
METRICS = ('fid', 'kid')


@dataclass
class Judge:
    """Measure samples of a class-conditional model against its training set.

    Attributes:
        denoiser: The model, without guidance.
        experiment: Its experiment.
        metric: fid or kid.
        real: The features of the reference pictures [M, D].
        classes: Their classes, which samples use in turn.
        extractor: A function from pictures [B, C, H, W] in [-1, 1] to features [B, D].
        n: The number of samples of a comparison.
        seed: The seed that the seeds of choices and of reported values derive from.
        batch_size: Samples per batch.
        device: The device of the model.
    """

    denoiser: DenoiseFn
    experiment: Experiment
    metric: str
    real: Tensor
    classes: list[int] | None
    extractor: Any
    n: int
    seed: int
    batch_size: int
    device: torch.device

    @classmethod
    def of(
        cls,
        checkpoint: str | os.PathLike[str],
        denoiser: DenoiseFn,
        experiment: Experiment,
        metric: str,
        extractor: Any,
        n: int,
        seed: int,
        batch_size: int,
        device: torch.device,
        allow_code: bool,
        say: Callable[[str], None],
    ) -> Judge:
        """Open the training set of a model and compute the features of its pictures.

        Args:
            checkpoint: The checkpoint of the model.
            denoiser: The model, without guidance.
            experiment: Its experiment.
            metric: fid or kid.
            extractor: The feature extractor, as in `evaluate`; None: a classifier.
            n: The number of samples of a comparison.
            seed: The seed.
            batch_size: Samples per batch.
            device: The device of the model.
            allow_code: Allow a TorchScript file to run.
            say: Report a line of text.

        Raises:
            ValueError: The model is not conditional on classes alone.
        """
        if not experiment.sections.dataset.num_classes or experiment.sections.conditions:
            raise ValueError(
                'guidance must be a number for a model that is not conditional on classes alone; '
                "got 'auto'"
            )
        reference = open_reference(
            experiment, None, allow_code, Path(find_checkpoint(checkpoint)).parent, device
        )
        cache = cache_folder() / 'evaluation'
        if not callable(extractor):
            extractor = make_extractor(
                extractor or 'classifier', lambda: reference, cache, device, say, allow_code
            )
        indices = choose_pictures(reference, 50_000)
        real = reference_features(reference, indices, extractor, cache, batch_size, device)
        return cls(
            denoiser,
            experiment,
            metric,
            real,
            classes_of(reference, indices),
            extractor,
            n,
            seed,
            batch_size,
            device,
        )

    def measure(
        self, sampling: SamplingConfig, n: int, key: str, calibration: Calibration | None = None
    ) -> tuple[float, float]:
        """Return the metric of n samples and its standard error.

        Args:
            sampling: The number of model calls and the guidance.
            n: The number of samples.
            key: The name of the seeds of the samples.
            calibration: The calibrated solver that draws them; None: the recommended sampler.
        """
        seed = derive_seed(self.seed, 'guidance', key)
        own = None if calibration is None else calibration.sampler()
        draw = Draw(
            self.denoiser,
            self.experiment,
            sampling,
            seed,
            self.classes,
            self.batch_size,
            self.device,
            own,
        )
        with torch.no_grad():
            parts = torch.arange(n).split(self.batch_size)
            fake = torch.cat(
                [
                    self.extractor(draw(items.tolist()).to(self.device)).float().cpu()
                    for items in parts
                ]
            )
        if self.metric == 'kid':
            return kid_with_error(fake, self.real)
        value, _, error = fid_with_error(fake, self.real)
        return value, error

    def quality(self, calibration: Calibration) -> dict[str, float]:
        """Return the metric of the samples of `calibration` and its standard error, by name.

        The samples have seeds that no choice was based on.
        """
        sampling = SamplingConfig(
            steps=calibration.steps,
            guidance=calibration.guidance,
            guidance_interval=calibration.guidance_interval,
        )
        value, error = self.measure(sampling, self.n, 'shown', calibration)
        return {self.metric: value, f'{self.metric}_error': error}


def guidances(
    sigma_data: float, interval: Sequence[float] | None
) -> Iterator[tuple[float, tuple[float, float] | None]]:
    """Yield scales with intervals to try, no guidance first.

    Every other scale comes with all levels and with each interval.

    Args:
        sigma_data: The standard deviation of the data.
        interval: An interval to try besides the usual ones.
    """
    intervals = [] if interval is None else [(float(interval[0]), float(interval[1]))]
    for low, high in ((low * sigma_data, high * sigma_data) for low, high in INTERVALS):
        if not any(
            math.isclose(low, a, rel_tol=0.1) and math.isclose(high, b, rel_tol=0.1)
            for a, b in intervals
        ):
            intervals.append((low, high))
    yield 1.0, None
    for scale in SCALES[1:]:
        for each in (None, *intervals):
            yield scale, each


def choose_guidance(
    judge: Judge, steps: int, interval: Sequence[float] | None, say: Callable[[float, str], None]
) -> tuple[float, tuple[float, float] | None]:
    """Return the scale and the interval with the best samples by the recommended sampler.

    The choice is a function of the arguments. All candidates are compared on the same seeds, the
    best of them on more.

    Args:
        judge: Measures the samples.
        steps: The number of model calls.
        interval: An interval to try besides the usual ones.
        say: Called with the finished share of the work and a description of the current part.
    """
    candidates = list(guidances(float(getattr(judge.denoiser, 'sigma_data', 1.0)), interval))
    few = max(2, round(judge.n * FIRST_SHARE))
    cost = [few] * len(candidates) + [judge.n] * FINALISTS

    def values(
        n: int,
        key: str,
        candidates: Sequence[tuple[float, tuple[float, float] | None]],
        before: int,
    ) -> list[float]:
        scores = []
        for k, (scale, each) in enumerate(candidates):
            say(sum(cost[: before + k]) / sum(cost), f'guidance {scale:g}, {steps} calls')
            scores.append(
                judge.measure(
                    SamplingConfig(steps=steps, guidance=scale, guidance_interval=each), n, key
                )[0]
            )
        return scores

    first = values(few, 'few', candidates, 0)
    best = sorted(range(len(candidates)), key=lambda k: first[k])[:FINALISTS]
    second = values(judge.n, 'all', [candidates[k] for k in best], len(candidates))
    return candidates[best[second.index(min(second))]]
