"""Draw the paths of a teacher, its samples with all intermediate states, once into a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...config import Experiment
from ...core.conditions import select_entries
from ...core.devices import send
from ...core.random import derive_seed, randn_items
from ...core.tensor_cache import load_cache, save_cache
from ...core.weights import fingerprint
from ...generation import SamplingConfig, apply_guidance, choose_plan
from ...sampling import find_sampler, iterate
from .. import calibrations

#: Paths that are drawn at a time.
AT_A_TIME = 128


class TeacherPaths(NamedTuple):
    """N paths of n steps.

    Attributes:
        x: The states, [N, n + 1, ...]: first the noise, last the sample.
        levels: Their noise levels, [n + 1], falling to 0.
        cond: The conditions of the paths by name, [N, ...] each.
    """

    x: Tensor
    levels: Tensor
    cond: dict[str, Tensor]

    def at(self, paths: Tensor, points: Tensor, device: Any) -> tuple[Tensor, Tensor]:
        """Return the states [B, ...] and their levels [B] on a device.

        Args:
            paths: Numbers of paths [B].
            points: Numbers of points on them [B].
            device: The device.
        """
        return send(self.x[paths, points], device), send(self.levels[points], device)

    def conditions(self, paths: Tensor, device: Any) -> dict[str, Tensor]:
        """Return the conditions of `paths` by name, [B, ...] each, on `device`."""
        return {key: send(value[paths], device) for key, value in self.cond.items()}


def teacher_paths(
    file: Path,
    teacher: nn.Module,
    checkpoint: str,
    sampling: SamplingConfig,
    null: dict[str, Any],
    make_conditions: Callable[[Sequence[int]], dict[str, Tensor]],
    n: int,
    seed: int,
    device: torch.device,
    say: Callable[[str], None],
) -> TeacherPaths:
    """Return the paths in a file, or draw them and write it.

    They are drawn as `sample` draws: by the calibrated sampler of the checkpoint for this number of
    model calls and this guidance, where there is one, else by that of `sampling` or the
    recommended one. Path i depends on (seed, i) and its conditions alone.

    Args:
        file: Where they are kept. Other paths than those asked for are drawn anew.
        teacher: The teacher, without guidance.
        checkpoint: Its path, beside which its calibrations are.
        sampling: The sampler, the number of model calls and the guidance.
        null: What stands for no condition, by name; empty for a model without conditions.
        make_conditions: The conditions of paths by their numbers.
        n: How many paths.
        seed: The seed.
        device: Where the teacher is.
        say: A function that shows a line of progress.

    Raises:
        ValueError: The sampler draws noise, or chooses its own levels.
    """
    experiment: Experiment = teacher.experiment  # type: ignore[assignment]
    sigmas, sampler, options = choose_plan(teacher, sampling, bool(null) and sampling.guidance != 1)
    calibration = None
    if sampling.sampler is None and sampling.schedule is None:
        calibration = calibrations.find_calibration(
            checkpoint, teacher, sampling, list(null), float(sigmas[0]), demanded=False
        )
    if calibration is not None:
        sigmas, sampler, options = calibration.levels, calibration.sampler(), {}
    entry = find_sampler(sampler)
    if entry.stochastic or 'sigmas' not in entry.takes:
        raise ValueError(
            f'sampling.sampler must draw no noise and walk given levels, so that its paths can be '
            f'learned; got {entry.name}: take dpmpp_2m'
        )
    facts = {
        'teacher': fingerprint(teacher.state_dict()),
        'sampler': entry.name,
        'options': {key: str(value) for key, value in options.items()},
        'levels': [float(sigma) for sigma in sigmas],
        'guidance': [sampling.guidance, *(sampling.guidance_interval or ())],
        'n': n,
        'seed': seed,
    }
    cache = load_cache(file)
    if cache is not None and cache[1] == facts:
        tensors = cache[0]
        cond = {key[5:]: value for key, value in tensors.items() if key.startswith('cond.')}
        return TeacherPaths(tensors['x'], tensors['levels'], cond)
    calls = len(sigmas) - 1 - entry.unasked
    say(f'drawing {n:,} paths of the teacher, {calls} model calls each, by {entry.name}')
    denoise = apply_guidance(teacher, null, sampling) if null else teacher
    parts: list[Tensor] = []
    levels: list[float] = []
    conditions = make_conditions(range(n))
    for start in range(0, n, AT_A_TIME):
        items = range(start, min(start + AT_A_TIME, n))
        seeds = [derive_seed(seed, 'path', i) for i in items]
        x = randn_items(experiment.shape, seeds, device) * float(sigmas[0])
        here = select_entries(conditions, torch.tensor(list(items)), n)
        here = {key: value.to(device) for key, value in here.items()}
        states, levels = [x.clone()], [float(sigmas[0])]
        run = iterate(entry, denoise, x, sigmas.to(device), here, disable=True, **options)
        for state in run:
            states.append(state.x.float().clone())
            levels.append(float(state.sigma))
        parts.append(torch.stack(states, 1).cpu())
    result = TeacherPaths(
        torch.cat(parts), torch.tensor(levels), {key: v.cpu() for key, v in conditions.items()}
    )
    cond_tensors = {f'cond.{key}': value for key, value in result.cond.items()}
    save_cache(file, {'x': result.x, 'levels': result.levels, **cond_tensors}, facts)
    return result
