"""Asking a model once which recipe suits it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .core.arguments import check_whole, show_value
from .core.devices import choose_device
from .core.protocols import DenoiseFn
from .generation import (
    as_condition,
    batch_shape,
    device_of,
    generate,
    known_levels,
    make_seeds,
    refuse_unwrapped,
)
from .guidance import classifier_free
from .recipes import CANDIDATES, FINE, FLOOR, Probe, Recipe, Traits


@torch.no_grad()
def probe(
    denoiser: DenoiseFn,
    shape: Sequence[int],
    steps: Sequence[int] = (5, 8, 10, 15, 20),
    cond: Mapping[str, Any] | None = None,
    guidance: float = 1.0,
    null: Mapping[str, Any] | None = None,
    guidance_interval: tuple[float, float] | None = None,
    seed: int = 0,
    fine: int = 150,
    batch_size: int = 64,
    device: Any = None,
) -> Probe:
    """Find the recipe that suits a denoiser best, for each of some numbers of model calls, by a few
    noises and a finer run.

        denoiser.probe = K.probe(denoiser, [16, 1, 28, 28])

    K.sample(denoiser, ...) then uses the result.

    A recipe is judged by the rms and the median distance of its ends from those of `fine` steps:
    that one is taken whose larger ratio to the least of either is the smallest. It asks the model
    for fine + len(CANDIDATES) * sum(steps) batches. The same arguments find the same recipes.

    Args:
        denoiser: The denoiser.
        shape: Of the batch of noises, [B, ...]; 8 to 32 items are enough.
        steps: Numbers of model calls.
        cond: Conditions, as `sample` takes them.
        guidance: The scale of classifier-free guidance; 1 is none.
        null: The values that stand for no conditions.
        guidance_interval: The noise levels (low, high] at which guidance acts; by default all.
        seed: That of the noises.
        fine: Steps of the finer run.
        batch_size: How many noises the denoiser is given at once.
        device: Where to run.

    Returns:
        The recipes; `save` keeps them beside a checkpoint, and `Probe.load` reads them.
    """
    refuse_unwrapped(denoiser)
    shape, steps = batch_shape(shape), _numbers_of_calls(steps)
    if not shape[0]:
        raise ValueError(f'shape must hold at least one noise; got {shape}')
    check_whole('fine', fine)
    traits = Traits.of(denoiser, scale=guidance, interval=guidance_interval)
    guided = (
        denoiser
        if guidance == 1
        else classifier_free(denoiser, null or {}, guidance, guidance_interval or (0.0, math.inf))
    )
    conditions = {key: as_condition(value, shape[0]) for key, value in (cond or {}).items()}
    device = device_of(denoiser) if device is None else choose_device(device)

    def run(recipe: Recipe, n: int) -> Tensor:
        sigmas = known_levels(denoiser, recipe.levels(n, traits, recipe.options))
        return generate(
            guided,
            shape[1:],
            sigmas,
            recipe.sampler,
            make_seeds(seed, shape[0]),
            conditions,
            batch_size=batch_size,
            device=device,
            options=recipe.options,
        )

    ends, recipes, seen = run(FINE, fine), {}, {}
    for n in steps:
        found = [_distances(run, recipe, n, ends) for recipe in CANDIDATES]
        least = [min(pair[i] for pair in found) for i in (0, 1)]
        worst = [
            max((value + FLOOR) / (best + FLOOR) for value, best in zip(pair, least))
            for pair in found
        ]
        chosen = worst.index(min(worst))
        rms, median = found[chosen]
        recipes[n] = replace(
            CANDIDATES[chosen],
            why=(
                f'of {len(CANDIDATES)} recipes it ended nearest to {fine} steps on {shape[0]} '
                f'noises of this model with {n} calls '
                f'(rms {rms:.2g}, median {median:.2g})'
            ),
        )
        seen[n] = {str(recipe): pair for recipe, pair in zip(CANDIDATES, found)}
    return Probe(traits, recipes, seen)


def _numbers_of_calls(steps: Sequence[int]) -> list[int]:
    if isinstance(steps, str) or not isinstance(steps, Iterable):
        raise ValueError(
            f'steps must be numbers of model calls, [5, 10] for example; got {show_value(steps)}'
        )
    numbers = list(steps)
    for n in numbers:
        check_whole('each of steps', n)
    return numbers


def _distances(
    run: Callable[[Recipe, int], Tensor], recipe: Recipe, n: int, ends: Tensor
) -> tuple[float, float]:
    """(rms, median) over the items of the rms over their entries between a recipe's ends and the
    true ones.
    """
    try:
        distances = (run(recipe, n) - ends).flatten(1).double().square().mean(1).sqrt()
    except ValueError:  # the run left the range of numbers
        return math.inf, math.inf
    return distances.square().mean().sqrt().item(), distances.median().item()
