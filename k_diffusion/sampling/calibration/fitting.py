"""`calibrate`: fit a solver to a model, so that few calls end where many would.

k-diffusion's own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...core.protocols import DenoiseFn
from ...core.registry import unknown
from ..spectrum import Spectrum
from .bases import BASES
from .candidates import Students
from .files import spectrum_from_dict, spectrum_to_dict
from .judging import Verdict, choose_fit, judge_recipes
from .least_squares import Loss, fit, mean_squares
from .published import Published, published_recipes
from .reference_runs import Teacher
from .solver import PUBLISHED, Calibration
from .starts import schedules

#: Number of rounds of a fit: of the levels alone, then of all parameters.
ROUNDS = (4, 12)
#: Share of the work that is spent on the levels of all attempts.
SCREENING = 0.4
#: Weights of the estimates along the path relative to the end: none, and a large one (where small
#: early errors decide which image results).
PATH_WEIGHTS = (0.0, 32.0)
#: Errors below this share of half the first median error count as none: at the end, and along the
#: path.
END_SCALE, PATH_SCALE = 0.55, 5.5


def calibrate(
    denoise: DenoiseFn,
    x: Tensor,
    sigma_max: float,
    sigma_min: float = 0.002,
    steps: int = 5,
    extra_args: Mapping[str, Tensor] | None = None,
    spectrum: Spectrum | None = None,
    bases: Sequence[str] = BASES,
    held_out: int | None = None,
    batch_size: int = 256,
    teacher: Teacher | None = None,
    callback: Callable[[float, str], Any] | None = None,
    recipes: Sequence[Published] = (),
    **labels: Any,
) -> Calibration:
    """Fit a solver of `steps` model calls to a denoiser.

    The target is the end of the probability flow from x. The levels of each of three multistep
    methods are fitted by Levenberg-Marquardt with a robust loss and derivatives by finite
    differences (no gradient of the model is needed). Then the weights of the nearest ones are
    fitted. The best on held-out items is kept. A published recipe is kept in its place (`published`
    of the result) unless the fit is nearer by both rms and median, with no more items that end as
    something else. The cost is some 500 times `steps` times the number of fitted items, in
    evaluations of single items. The result is a function of the arguments. k-diffusion's own.

    Args:
        denoise: The denoiser.
        x: Noise at the level sigma_max, [B, ...]; at least 16 items. 32 and more are better, and
            vectors of few entries need more.
        sigma_max: The first level.
        sigma_min: The level from which the converged runs and the published recipes step to 0.
        steps: Number of model calls.
        extra_args: Conditions, with an entry for each item.
        spectrum: Spectrum.of(data); by default that of the ends of the converged runs.
        bases: The methods to fit.
        held_out: Number of items, the last ones, that are used for the choice only; by default half
            of them.
        batch_size: Number of items in one model call.
        teacher: Converged runs from x, which serve any number of steps; computed by default.
        callback: Called at times with the share of the work that is done and a description.
        recipes: Further recipes of `steps` model calls to compare with.
        **labels: model, guidance, guidance_interval, conditions and quality of the result.

    Returns:
        The calibration.

    Raises:
        ValueError: If steps, held_out, bases or recipes is out of range.

    Example:
        calibration = K.sampling.calibrate(denoise, torch.randn(32, 3, 32, 32) * 80, 80., steps=8)
        images = calibration.sampler()(denoise, torch.randn(4, 3, 32, 32) * 80)
    """
    if steps < 1:
        raise ValueError(f'steps must be >= 1, the number of model calls; got {steps}')
    check_bases(bases)
    odd = next((recipe for recipe in recipes if recipe.calls != steps), None)
    if odd is not None:
        raise ValueError(
            f'recipes must be of {steps} model calls; got {odd}, which makes {odd.calls}'
        )
    other_count = len(x) // 2 if held_out is None else held_out
    if not 1 <= other_count <= len(x) - 2:
        raise ValueError(
            f'x must hold at least 16 items, of which at most half are held out; got {len(x)} '
            f'with held_out={other_count}'
        )
    say = callback or (lambda share, words: None)
    if teacher is None:
        say(0.0, 'converged runs')
        teacher = Teacher(denoise, x, sigma_min, sigma_max, extra_args, batch_size=batch_size)
    spectrum = spectrum_from_dict(
        spectrum_to_dict(Spectrum.of(teacher.ends) if spectrum is None else spectrum)
    )
    border = len(x) - other_count
    learned, other = teacher.part(slice(0, border)), teacher.part(slice(border, None))
    attempts = [
        attempt
        for base in bases
        for attempt in _attempts(Students(denoise, learned, spectrum, base, steps, batch_size))
    ]
    _fit_all(attempts, lambda share, words: say(share, f'{words}, {steps} calls'))
    compared = [*published_recipes(steps, teacher.sigma_min, teacher.sigma_max), *recipes]
    return dataclasses.replace(_choose(attempts, compared, other), **labels)


def check_bases(bases: Sequence[str]) -> None:
    """Raise a ValueError if a base is unknown or there is none.

    Args:
        bases: The names.
    """
    for base in bases:
        if base not in BASES:
            raise ValueError(unknown('base', base, BASES))
    if not bases:
        raise ValueError(f'bases must name at least one of {", ".join(BASES)}; got none')


@dataclasses.dataclass
class Attempt:
    """A fit of one base with one weight of the path, starting at `theta`.

    Attributes:
        students: The solvers.
        loss: The loss.
        only_end: Ignore the estimates along the path.
        theta: The parameters, [T].
        iterates: The parameters after each round.
    """

    students: Students
    loss: Loss
    only_end: bool
    theta: Tensor
    iterates: list[Tensor]

    def blocks(
        self, candidates: Sequence[Tensor], first: Sequence[int] | None = None
    ) -> Iterator[Tensor]:
        """Yield the residuals in the loss.

        Args:
            candidates: The parameters of P solvers.
            first: The step from which each solver differs from solver 0.
        """
        return _blocks(self.students, candidates, first, self.only_end)

    def improve(self, free: Sequence[int], rounds: int) -> None:
        """Fit some of the parameters.

        Args:
            free: Their indices.
            rounds: Number of rounds.
        """
        difference = 1e-3 if self.students.x.dtype == torch.float32 else 1e-5
        self.theta, _ = fit(
            self.blocks,
            self.loss,
            self.theta,
            free,
            self.students.first,
            rounds,
            difference,
            self.iterates.append,
        )

    def distance(self) -> float:
        """Return the geometric mean of the distances of the fitted items to the converged ends.

        Items that end as something else have little influence on it.
        """
        squares = mean_squares(
            (self.students.ends([self.theta]) - self.students.teacher.ends).flatten(2)
        )
        return float((squares + 1e-12).log().mean().nan_to_num(math.inf))


def _attempts(students: Students) -> Iterator[Attempt]:
    """Yield an attempt for each weight of the path, at the levels that are its best start."""
    starts = [students.start(levels) for levels in schedules(students)]
    squares = [mean_squares(block) for block in _blocks(students, starts)]
    for weight in PATH_WEIGHTS:
        only_end = not weight
        start, loss = _best_start(
            squares[-1:] if only_end else squares,
            [*[weight / students.n] * (0 if only_end else students.n), 1.0],
        )
        yield Attempt(students, loss, only_end, starts[start], [starts[start]])


def _fit_all(attempts: Sequence[Attempt], say: Callable[[float, str], None]) -> None:
    """Fit the levels of all attempts, then all parameters of the nearest ones.

    One attempt is fitted further for each weight of the path.
    """
    for k, attempt in enumerate(attempts):
        say(SCREENING * k / len(attempts), f'{attempt.students.base}, levels')
        attempt.improve(range(attempt.students.n), ROUNDS[0])
    ranked = sorted(attempts, key=Attempt.distance)
    finalists = [
        next(attempt for attempt in ranked if attempt.only_end == only_end)
        for only_end in (False, True)
    ]
    for k, attempt in enumerate(finalists):
        say(SCREENING + (1 - SCREENING) * k / len(finalists), attempt.students.base)
        attempt.improve([k for k, free in enumerate(attempt.students.free) if free], ROUNDS[1])


def _blocks(
    students: Students,
    candidates: Sequence[Tensor],
    first: Sequence[int] | None = None,
    only_end: bool = False,
) -> Iterator[Tensor]:
    """Yield the errors [P, B, D] of D at each model call, and last those of the ends."""
    for sigma, values in students.run(candidates, first):
        if bool((sigma == 0).all()):
            yield (values - students.teacher.ends).flatten(2)
        elif not only_end:
            yield (values - students.teacher.estimates(sigma)).flatten(2)


def _best_start(squares: Sequence[Tensor], weights: Sequence[float]) -> tuple[int, Loss]:
    """Return the best of the starts, and the loss with scales that match its errors."""
    halves = torch.stack([block.median(1).values.sqrt() / 2 for block in squares])
    tight = Loss(weights, halves.nan_to_num(math.inf).amin(1).clamp_min(1e-12).tolist())
    best = int(tight(squares).argmin())
    share = torch.tensor([PATH_SCALE] * (len(squares) - 1) + [END_SCALE], dtype=torch.float64)
    return best, Loss(weights, (halves[:, best].cpu() * share).clamp_min(1e-12).tolist())


def _choose(
    attempts: Sequence[Attempt], recipes: Sequence[Published], other: Teacher
) -> Calibration:
    """Return the best iterate on the held-out items, or the best recipe if none is nearer."""
    denoise, batch_size, spectrum = (
        getattr(attempts[0].students, name) for name in ('denoise', 'batch_size', 'data_spectrum')
    )
    published, recipe = judge_recipes(recipes, denoise, other, batch_size)
    bar = published.scores(recipe)
    verdicts, candidates = [], []
    for attempt in attempts:
        students = Students(
            denoise, other, spectrum, attempt.students.base, attempt.students.n, batch_size
        )
        for k in range(0, len(attempt.iterates), 8):
            thetas = attempt.iterates[k : k + 8]
            verdicts.append(Verdict.of(students.ends(thetas), other))
            candidates += [(students, theta) for theta in thetas]
    fits = Verdict(*(torch.cat(values) for values in zip(*verdicts)))
    best, nearer = choose_fit(fits, bar, other.std)
    scores = {
        'items': float(len(other.x)),
        'teacher_change': other.change,
        **published.scores(recipe, 'published_'),
        **fits.scores(best, '' if nearer else 'fitted_'),
    }
    scores = {name: value for name, value in scores.items() if math.isfinite(value)}
    if not nearer:
        best_recipe = recipes[recipe]
        return Calibration(
            PUBLISHED,
            best_recipe.sigmas,
            (),
            spectrum,
            {**scores, **bar},
            published=best_recipe.sampler,
            options=best_recipe.options,
        )
    students, theta = candidates[best]
    return Calibration(
        students.base,
        tuple(students.levels(theta)),
        tuple(map(tuple, students.corrections(theta))),
        spectrum,
        scores,
    )
