"""Post-hoc EMA: reconstruct averages of any width from snapshots of two averages.

A power profile of exponent g at step t weighs the moment tau <= t as (g + 1) / t (tau / t)^g. The
requested profile is approximated by a combination of those of the snapshots. The paper takes least
squares of the profiles, which is optimal for weights that are independent at each step. Here
weights are treated as sums theta of small independent moves. An average is then the sum of the
moves, each times the part of the profile after it, R(tau) = 1 - (tau / t)^(g + 1). So the least
squares here are of R, with factors that sum to 1 (k-diffusion's own); on real runs this is two to
eight times as accurate.

References:
    Karras et al. (2024), arXiv:2312.02696, section 3.2.
"""

from __future__ import annotations

import copy
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core.files import MALFORMED, FileDigest, digest_of, note_once, read_json, say_malformed
from ..core.weights import (
    get_safetensors_metadata,
    load_safetensors,
    open_safetensors,
    save_safetensors,
)
from .checkpoints.manifest import Manifest, Record, check_recorded
from .checkpoints.reading import unwrap
from .ema import PowerEMA, ema_pairs, ema_update_pairs, power_ema_exponent
from .sharding import cut_state, whole_state

if TYPE_CHECKING:
    from .trainer import Trainer

WIDTHS = (0.05, 0.10)

_Layout = frozenset[tuple[str, tuple[int, ...]]]


class Snapshot(NamedTuple):
    """An average after `step` steps, of relative width `width`, in the file `path`."""

    step: int
    width: float
    path: Path


class SnapshotHook:
    """Averages the network at several widths, and writes the averages every `snapshot_every` steps.

    It is also a part of the Trainer (under 'posthoc'), so that a pause changes nothing. A snapshot
    is NAME_ema_STEP.safetensors, with one tensor "WIDTH/NAME" for each width and weight.

    Args:
        network: The network.
        folder: The folder of the snapshots.
        name: The run.
        snapshot_every: Steps between snapshots.
        config: Stored in the snapshots.
        widths: The relative widths.
    """

    every = 1
    at_end = False

    def __init__(
        self,
        network: nn.Module,
        folder: Path,
        name: str,
        snapshot_every: int,
        config: Any = None,
        widths: Sequence[float] = WIDTHS,
    ) -> None:
        self.folder, self.name, self.snapshot_every, self.config = (
            folder,
            name,
            snapshot_every,
            config,
        )
        self.scheds = [PowerEMA(width) for width in widths]
        self.averages = [copy.deepcopy(network).requires_grad_(False).eval() for _ in widths]
        self._pairs: list[Any] = []

    def __call__(self, trainer: Trainer) -> None:
        if not self._pairs:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._pairs = [ema_pairs(unwrap(trainer.model), average) for average in self.averages]
        for sched, pairs in zip(self.scheds, self._pairs):
            ema_update_pairs(pairs, sched.get_value())
            sched.step()
        if trainer.step % self.snapshot_every == 0 or trainer.done:
            trainer.check_finite()
            self.write(trainer.step, trainer.accelerator.is_main_process)

    def write(self, step: int, main: bool = True) -> None:
        """Write the averages.

        Args:
            step: The step.
            main: This process writes the file.
        """
        tensors = {}
        for sched, average in zip(self.scheds, self.averages):
            tensors.update(
                {
                    f'{sched.width:g}/{key}': value
                    for key, value in whole_state(average.state_dict()).items()
                }
            )
        if main:
            path = snapshot_path(self.folder, self.name, step)
            manifest = Manifest(self.folder / f'{self.name}_manifest.json')
            manifest.drop(path.name)
            save_safetensors(path, tensors, self.config)
            digest = FileDigest(path.stat().st_size, digest_of(path))
            manifest.put(path.name, Record(step, {path.name: digest}))

    def state_dict(self) -> dict[str, Any]:
        """Return the averages and their schedules, by width."""
        return {
            f'{sched.width:g}': {'sched': sched.state_dict(), 'model': average.state_dict()}
            for sched, average in zip(self.scheds, self.averages)
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state.

        Args:
            state: The result of state_dict.

        Raises:
            ValueError: If it lacks one of the widths.
        """
        for sched, average in zip(self.scheds, self.averages):
            average_state = state.get(f'{sched.width:g}')
            if average_state is None:
                raise ValueError(
                    f'ema_widths must be those of the checkpoint to resume it, {", ".join(state)}; '
                    f'got {sched.width:g}'
                )
            sched.load_state_dict(average_state['sched'])
            average.load_state_dict(cut_state(average_state['model'], average.state_dict()))


def snapshot_path(folder: Path, name: str, step: int) -> Path:
    """Return the path of a snapshot.

    Args:
        folder: The folder.
        name: The run.
        step: The step.
    """
    return folder / f'{name}_ema_{step:08}.safetensors'


def find_snapshots(
    folder: str | os.PathLike[str], name: str | None = None, verify: bool = False
) -> list[Snapshot]:
    """Return the snapshots in a run's folder, by step and width.

    Files that are damaged, or have other weights than most of the run, are skipped with a warning.

    Args:
        folder: The folder.
        name: The run; None takes all.
        verify: Read each file completely and compare it with its record in the manifest beside it.
    """
    files_of: dict[str, list[tuple[int, list[float], Path, _Layout]]] = {}
    for path in sorted(Path(folder).glob('*.safetensors')):
        match = re.fullmatch(r'(.+)_ema_([0-9]{8,18})\.safetensors', path.name)
        if match and name in (None, match[1]):
            try:
                widths, layout = _contents(path)
                if verify:
                    check_recorded(path)
            except MALFORMED as error:
                note_once(f'{path} is skipped: {say_malformed(error)}')
                continue
            files_of.setdefault(match[1], []).append((int(match[2]), widths, path, layout))
    return sorted(snapshot for files in files_of.values() for snapshot in _alike(files))


def _contents(path: Path) -> tuple[list[float], _Layout]:
    """Return the widths in a snapshot file, and its tensors of each width: names and shapes."""
    layouts: dict[str, set[tuple[str, tuple[int, ...]]]] = {}
    with open_safetensors(path) as file:
        for key in file.keys():
            width, _, rest = key.partition('/')
            layouts.setdefault(width, set()).add((rest, tuple(file.get_slice(key).get_shape())))
    widths = [float(width) for width in layouts]
    for width in widths:
        power_ema_exponent(width)
    if len(set(map(frozenset, layouts.values()))) != 1:
        raise ValueError('it does not hold the same tensors for each width')
    return widths, frozenset(next(iter(layouts.values())))


def _alike(files: Sequence[tuple[int, list[float], Path, _Layout]]) -> Iterator[Snapshot]:
    """Yield the snapshots of files that hold the same weights as most."""
    counts = Counter(layout for _, _, _, layout in files)
    usual = max(counts, key=lambda layout: (counts[layout], len(layout)))
    for step, widths, path, layout in files:
        if layout == usual:
            yield from (Snapshot(step, width, path) for width in widths)
        else:
            note_once(f'{path} is skipped: it holds other weights than most snapshots')


def remainder_product(step_a: float, width_a: float, step_b: float, width_b: float) -> float:
    """Return the integral of R_a R_b over all moments.

    R(tau) = 1 - (tau / t)^(g + 1) up to t and 0 beyond. For t_a <= t_b it is
    t_a (1 - 1 / (a + 2) - q / (b + 2) + q / (a + b + 3)), q = (t_a / t_b)^(b + 1), a and b the
    exponents.

    Args:
        step_a: t_a.
        width_a: The width of the first profile.
        step_b: t_b.
        width_b: The width of the second profile.
    """
    if step_a > step_b:
        return remainder_product(step_b, width_b, step_a, width_a)
    a, b = power_ema_exponent(width_a), power_ema_exponent(width_b)
    q = (step_a / step_b) ** (b + 1)
    return step_a * (1 - 1 / (a + 2) - q / (b + 2) + q / (a + b + 3))


def combination(snapshots: Sequence[tuple[float, float]], step: float, width: float) -> Tensor:
    """Return the factors of snapshots for an average: float64 [N], with sum 1.

    Args:
        snapshots: (step, width) of each.
        step: The step of the average.
        width: Its width.
    """
    n = len(snapshots)
    system, targets = (
        torch.ones(n + 1, n + 1, dtype=torch.float64),
        torch.ones(n + 1, 1, dtype=torch.float64),
    )
    system[n, n] = 0  # the last row and column constrain the sum
    for i, one in enumerate(snapshots):
        system[i, :n] = torch.tensor(
            [remainder_product(*one, *other) / step for other in snapshots]
        )
        targets[i] = remainder_product(*one, step, width) / step
    solution = torch.linalg.lstsq(system, targets, driver='gelsd').solution[:n, 0]
    return solution / solution.sum()


def reconstruct(
    snapshots: Iterable[Snapshot], width: float, step: int | None = None
) -> dict[str, Tensor]:
    """Return the weights averaged at a width after a number of steps.

    Args:
        snapshots: The snapshots; those up to the step are used.
        width: The width.
        step: The step of a snapshot; by default the last one.

    Raises:
        ValueError: If there is no snapshot at the step.
    """
    ordered = sorted(snapshots)
    step = ordered[-1].step if step is None and ordered else step
    sources = [snapshot for snapshot in ordered if step is not None and snapshot.step <= step]
    if not sources or step is None or sources[-1].step < step:
        steps = sorted({snapshot.step for snapshot in ordered})
        raise ValueError(
            f'step must be one of the steps of the snapshots, {steps}; got no snapshot at step '
            f'{step}'
        )
    factors = combination([(snapshot.step, snapshot.width) for snapshot in sources], step, width)
    total: dict[str, Tensor] = {}
    for factor, snapshot in zip(factors.tolist(), sources):
        head = f'{snapshot.width:g}/'
        with open_safetensors(snapshot.path) as file:
            for key in file.keys():
                if key.startswith(head):
                    _add(total, key.removeprefix(head), file.get_tensor(key), factor)
    like = load_safetensors(sources[-1].path)
    head = f'{sources[-1].width:g}/'
    return {
        key: value.to(like[head + key].dtype) if value.is_floating_point() else value
        for key, value in total.items()
    }


def _add(total: dict[str, Tensor], key: str, value: Tensor, factor: float) -> None:
    """Add in float64; integer buffers are those of the last snapshot."""
    if not value.is_floating_point():
        total[key] = value
    elif key in total:
        total[key].add_(value.double(), alpha=factor)
    else:
        total[key] = value.double() * factor


def snapshot_config(snapshot: Snapshot) -> Any:
    """Return the config in a snapshot; None without one, or with a warning if it is damaged.

    Args:
        snapshot: The snapshot.
    """
    text = get_safetensors_metadata(snapshot.path).get('config')
    try:
        return None if text is None else read_json(text, f'the config inside {snapshot.path}')
    except ValueError as error:
        note_once(f'{error}; it is ignored')
        return None
