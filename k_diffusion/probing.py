"""Probing a model once for the recipe that suits it."""

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
    make_seeds,
    refuse_unwrapped,
    round_levels,
)
from .guidance import classifier_free
from .recipes import FINE, FLOOR, Probe, Recipe, Traits, list_candidates


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
    """Find the best recipe for a denoiser, for each of some numbers of model calls.

    The ends of each recipe from a few noises are compared with those of a run of `fine` steps, by
    the rms and the median distance. The best recipe is the one whose larger ratio to the least of
    either is smallest. The model is called on at most fine + 16 sum(steps) batches. The same
    arguments give the same recipes. k-diffusion's own.

    Args:
        denoiser: The denoiser.
        shape: The shape of the batch of noises, [B, ...]; 8 to 32 items are enough.
        steps: Numbers of model calls.
        cond: As in `sample`.
        guidance: Scale of classifier-free guidance; 1 disables it.
        null: Replacements for the conditions that guidance removes.
        guidance_interval: Noise levels (low, high] with guidance; by default all.
        seed: Seed of the noises.
        fine: Number of steps of the finer run.
        batch_size: Number of noises in one model call.
        device: Where to run.

    Returns:
        The recipes; `save` stores them beside a checkpoint, and `Probe.load` reads them.

    Raises:
        ValueError: If shape or steps is out of its range.

    Example:
        denoiser.probe = K.probe(denoiser, [16, 1, 28, 28])    # K.sample(denoiser, ...) uses it
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
        sigmas = round_levels(denoiser, recipe.levels(n, traits, recipe.options))
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

    ends, recipes, distances = run(FINE, fine), {}, {}
    for n in steps:
        candidates = list_candidates(n, traits)
        pairs = [_distances(run, recipe, n, ends) for recipe in candidates]
        least = [min(pair[i] for pair in pairs) for i in (0, 1)]
        worst = [
            max((value + FLOOR) / (best + FLOOR) for value, best in zip(pair, least))
            for pair in pairs
        ]
        index = worst.index(min(worst))
        rms, median = pairs[index]
        recipes[n] = replace(
            candidates[index],
            why=(
                f'of {len(candidates)} recipes it ended nearest to {fine} steps on {shape[0]} '
                f'noises of this model with {n} calls (rms {rms:.2g}, median {median:.2g})'
            ),
        )
        distances[n] = {str(recipe): pair for recipe, pair in zip(candidates, pairs)}
    return Probe(traits, recipes, distances)


def _numbers_of_calls(steps: Sequence[int]) -> list[int]:
    """Return the numbers of model calls as a list of checked integers."""
    if isinstance(steps, str) or not isinstance(steps, Iterable):
        raise ValueError(
            f'steps must be numbers of model calls, such as [5, 10]; got {show_value(steps)}'
        )
    numbers = list(steps)
    for n in numbers:
        check_whole('each of steps', n)
    return numbers


def _distances(
    run: Callable[[Recipe, int], Tensor], recipe: Recipe, n: int, ends: Tensor
) -> tuple[float, float]:
    """Return (rms, median) over items of the distances between a recipe's ends and true ones."""
    try:
        distances = (run(recipe, n) - ends).flatten(1).double().square().mean(1).sqrt()
    except ValueError:  # the run overflowed
        return math.inf, math.inf
    return distances.square().mean().sqrt().item(), distances.median().item()
