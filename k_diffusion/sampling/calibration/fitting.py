"""`calibrate`: a solver is fitted to a model, so that few calls end where many would have."""
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
from .least_squares import Loss, fit, mean_squares
from .reference_runs import Teacher
from .solver import Calibration

#: The rounds of a fit: of the levels alone, then of everything.
ROUNDS = (5, 12)
#: Ways to weigh the estimates along the path against the end: not at all, strongly, very (where small errors early on decide
#: which picture it becomes).
PATH_WEIGHTS = (0., 16., 64.)
#: Below this share of half the first median error, an error counts as none: at the end, and along the path.
END_SCALE, PATH_SCALE = 0.55, 5.5


def calibrate(denoise: DenoiseFn, x: Tensor, sigma_max: float, sigma_min: float = 0.002, steps: int = 5,
              extra_args: Mapping[str, Tensor] | None = None, spectrum: Spectrum | None = None, bases: Sequence[str] = BASES,
              held_out: int | None = None, batch_size: int = 256, teacher: Teacher | None = None,
              callback: Callable[[float, str], Any] | None = None, **labels: Any) -> Calibration:
    """A solver of `steps` model calls for this denoiser, fitted to where the probability flow leads from x.

    The levels and the weights of each of three multistep methods are fitted by Levenberg-Marquardt with differences for
    derivatives (no gradient of the model is asked for) and a robust loss, and the best on held-out items is kept. It costs, in
    evaluations of single items, some 1,000 times `steps` times the items that are fitted to. Everything follows from x.

    calibration = K.sampling.calibrate(denoise, torch.randn(32, 3, 32, 32) * 80, 80., steps=8)
    images = calibration.sampler()(denoise, torch.randn(4, 3, 32, 32) * 80)

    Arguments:
        x: noise at the level sigma_max [B, ...], 16 items at least, 32 and more are better; vectors of few entries need more.
        sigma_min: where the converged runs take their last step, to 0.
        extra_args: conditions, an entry for each item.
        spectrum: Spectrum.of(data); by default that of the ends of the converged runs.
        held_out: how many items, the last ones, are not fitted to but chosen by (default: half).
        batch_size: how many items the model is called on at a time.
        teacher: the converged runs from x where they are at hand: they serve any number of steps.
        callback: (the share of the work that is done, what is being done), now and then.
        labels: model, guidance, guidance_interval, conditions, as the calibration is to bear them.
    """
    if steps < 1:
        raise ValueError(f'steps is {steps}; a calibrated solver makes at least 1 model call')
    check_bases(bases)
    held = len(x) // 2 if held_out is None else held_out
    if not 1 <= held <= len(x) - 2:
        raise ValueError(f'{len(x)} items with {held} held out are too few; give at least 16 items of noise, and hold out up to half')
    say = callback or (lambda share, words: None)
    if teacher is None:
        say(0., 'converged runs')
        teacher = Teacher(denoise, x, sigma_min, sigma_max, extra_args, batch_size=batch_size)
    spectrum = spectrum_from_dict(spectrum_to_dict(Spectrum.of(teacher.ends) if spectrum is None else spectrum))
    learned, other = teacher.part(slice(0, len(x) - held)), teacher.part(slice(len(x) - held, None))
    found: list[tuple[float, Calibration]] = []
    for k, base in enumerate(bases):
        def told(part: float, k: int = k, base: str = base) -> None:
            say((k + part) / len(bases), f'{base}, {steps} calls')

        iterates = _fitted(Students(denoise, learned, spectrum, base, steps, batch_size), told)
        found.append(_best(Students(denoise, other, spectrum, base, steps, batch_size), iterates, labels))
    return min(found, key=lambda pair: pair[0])[1]


def check_bases(bases: Sequence[str]) -> None:
    """Refuses names of bases that are not known, and none at all."""
    for base in bases:
        if base not in BASES:
            raise ValueError(unknown('base', base, BASES))
    if not bases:
        raise ValueError(f'no bases were given to fit; name some of {", ".join(BASES)}')


def _fitted(students: Students, say: Callable[[float], None]) -> list[Tensor]:
    """Every iterate of every fit of one base, the best start first."""
    starts = [students.start(levels) for levels in schedules(students)]
    squares = [mean_squares(block) for block in _blocks(students, starts)]
    difference = 1e-3 if students.x.dtype == torch.float32 else 1e-5
    iterates: list[Tensor] = []
    levels, everything = range(students.n), [k for k, free in enumerate(students.free) if free]
    for q, weight in enumerate(PATH_WEIGHTS):
        only_end = not weight
        start, loss = _best_start(squares[-1:] if only_end else squares, [*[weight / students.n] * (0 if only_end else students.n), 1.])
        theta = starts[start]
        iterates.append(theta)

        def blocks(thetas: Sequence[Tensor], first: Sequence[int] | None = None, only_end: bool = only_end) -> Iterator[Tensor]:
            return _blocks(students, thetas, first, only_end)

        for i, (free, rounds) in enumerate(zip((levels, everything), ROUNDS)):
            theta, _ = fit(blocks, loss, theta, list(free), students.first, rounds, difference, iterates.append)
            say((q + (i + 1) / 2) / len(PATH_WEIGHTS))
    return iterates


def _blocks(students: Students, thetas: Sequence[Tensor], first: Sequence[int] | None = None, only_end: bool = False) -> Iterator[Tensor]:
    """What D misses the teacher's by at each model call, and the end the teacher's end: [P, B, D] each, the end last."""
    for sigma, values in students.run(thetas, first):
        if bool((sigma == 0).all()):
            yield (values - students.teacher.ends).flatten(2)
        elif not only_end:
            yield (values - students.teacher.estimates(sigma)).flatten(2)


def _best_start(squares: Sequence[Tensor], weights: Sequence[float]) -> tuple[int, Loss]:
    """The best of the starts, and the loss with scales as its errors are."""
    halves = torch.stack([block.median(1).values.sqrt() / 2 for block in squares])
    tight = Loss(weights, halves.nan_to_num(math.inf).amin(1).clamp_min(1e-12).tolist())
    best = int(tight(squares).argmin())
    share = torch.tensor([PATH_SCALE] * (len(squares) - 1) + [END_SCALE], dtype=torch.float64)
    return best, Loss(weights, (halves[:, best].cpu() * share).clamp_min(1e-12).tolist())


def _best(judges: Students, iterates: Sequence[Tensor], labels: Mapping[str, Any]) -> tuple[float, Calibration]:
    """The iterate that does best on the held-out items: by the geometric mean of their distances, and a little by the rms, which
    the few that end as another picture decide."""
    squares = torch.cat([mean_squares((judges.ends(iterates[k:k + 8]) - judges.teacher.ends).flatten(2))
                         for k in range(0, len(iterates), 8)])
    rms, median = squares.mean(1).sqrt().nan_to_num(math.inf), squares.median(1).values.sqrt().nan_to_num(math.inf)
    score = (squares + 1e-12).log().mean(1).div(2).exp().nan_to_num(math.inf) * rms ** 0.25
    best = int(score.argmin())
    scores = {'rms': rms[best].item(), 'median': median[best].item(), 'start_rms': rms[0].item(), 'start_median': median[0].item(),
              'teacher_change': judges.teacher.change}
    theta = iterates[best]
    plain = Calibration(judges.base, tuple(judges.levels(theta)), tuple(map(tuple, judges.corrections(theta))), judges.spectrum_given)
    return score[best].item(), dataclasses.replace(plain, scores=scores, **labels)


def schedules(students: Students) -> list[list[float]]:
    """Levels to start from, sigma_max first, n + 1 of them: Karras and exponential ones, and knots where D bends."""
    high, std, n = students.teacher.sigma_max, students.teacher.std, students.n
    ramp = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    made = []
    for low in (min(share * std, high / 4) for share in (0.04, 0.1)):
        for rho in (5., 7., 10., 50.):
            made.append((high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho)
    made.append(_where_it_bends(students, ramp))
    return [levels.tolist() for levels in made]


def _where_it_bends(students: Students, ramp: Tensor) -> Tensor:
    """Equal shares of (P |D''|)^(1/3), D'' in log sigma along the paths, P = s / sqrt(s^2 + sigma^2); down to 0.02 of the spread."""
    teacher = students.teacher
    t, d = teacher.log_snr, teacher.denoised.flatten(2)
    slopes = (d[1:] - d[:-1]) / (t[1:] - t[:-1]).to(d)[:, None, None]
    bends = (slopes[1:] - slopes[:-1]) / ((t[2:] - t[:-2]) / 2).to(d)[:, None, None]
    size = bends.square().mean((1, 2), dtype=torch.float64).sqrt().cpu()
    middle = t[1:-1]
    density = (size * teacher.std / (teacher.std ** 2 + (-2 * middle).exp()).sqrt()) ** (1 / 3) + 1e-3
    cells = (density[1:] + density[:-1]) / 2 * (middle[1:] - middle[:-1])
    grown = torch.cat([torch.zeros(1, dtype=torch.float64), (cells * ((-middle[1:]).exp() > 0.02 * teacher.std)).cumsum(0)])
    grown = grown / grown[-1]
    cell = (torch.searchsorted(grown, ramp[1:-1]) - 1).clamp(0, len(cells) - 1)
    inside = (ramp[1:-1] - grown[cell]) / (grown[cell + 1] - grown[cell]).clamp_min(1e-12)
    knots = middle[cell] + inside * (middle[cell + 1] - middle[cell])
    low = torch.tensor([-math.log(min(0.02 * teacher.std, teacher.sigma_max / 4))], dtype=torch.float64)
    return torch.cat([torch.tensor([-math.log(teacher.sigma_max)], dtype=torch.float64), knots, low]).neg().exp()
