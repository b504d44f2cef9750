"""Make averaged weights of any width from the snapshots of a run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..core.settings import check_settings, setting, takes_settings
from ..core.weights import save_safetensors
from ..training.posthoc import Snapshot, find_snapshots, reconstruct, snapshot_config


@dataclass(frozen=True)
class EmaSettings:
    """Settings of `ema`."""

    checkpoint_dir: str | os.PathLike[str] = setting(
        help='the folder of a run', flags=('--checkpoint-dir',)
    )
    width: float | None = setting(
        None, 'the relative width, for example 0.08 (default: list the snapshots)'
    )
    out: str | os.PathLike[str] | None = setting(
        None,
        'the file to write (default: NAME_ema_STEP_width_WIDTH.safetensors in the folder)',
        flags=('-o', '--out'),
    )
    step: int | None = setting(None, 'the step of the average (default: the last snapshot)')
    name: str | None = setting(None, 'the run, if the folder holds several')
    verify: bool = setting(True, 'accept a checkpoint that differs from its manifest')

    def __post_init__(self) -> None:
        exists, has_ending = (
            Path(self.checkpoint_dir).is_dir(),
            self.out is None or Path(self.out).suffix == '.safetensors',
        )
        check_settings(
            None
            if exists
            else f'checkpoint_dir must be the folder of a run; got {self.checkpoint_dir}',
            None
            if self.width is None or self.width > 0
            else f'width must be above 0; got {self.width}',
            None if has_ending else f'out must end in .safetensors; got {self.out}',
        )


@takes_settings(EmaSettings)
def ema(settings: EmaSettings) -> Snapshot | list[Snapshot]:
    """Write the average of a width at a step as a .safetensors file with the config of the run.

    Args:
        settings: The settings, or the fields of EmaSettings as arguments.

    Returns:
        The average: its step, width and path. Without `width`, the snapshots of the run.

    Raises:
        ValueError: There are no snapshots or those of several runs, or the output would overwrite
            one of them.
    """
    if settings.width is None:
        return list_snapshots(settings.checkpoint_dir, settings.name)
    snapshots = list_snapshots(settings.checkpoint_dir, settings.name, settings.verify)
    step = settings.step if settings.step is not None else snapshots[-1].step
    default = (
        Path(settings.checkpoint_dir)
        / f'{_run_of(snapshots[-1])}_ema_{step:08}_width_{settings.width:g}.safetensors'
    )
    path = default if settings.out is None else Path(settings.out)
    if any(path.resolve() == snapshot.path.resolve() for snapshot in snapshots):
        raise ValueError(f'out must differ from the snapshots; got {path}')
    save_safetensors(
        path, reconstruct(snapshots, settings.width, settings.step), snapshot_config(snapshots[-1])
    )
    return Snapshot(step, settings.width, path)


def list_snapshots(
    folder: str | os.PathLike[str], name: str | None = None, verify: bool = False
) -> list[Snapshot]:
    """Return the snapshots of the one run in a folder.

    Args:
        folder: The folder of the run.
        name: The run, if the folder holds several.
        verify: Compare the files with their manifest.

    Raises:
        ValueError: There are none, or those of several runs.
    """
    snapshots = find_snapshots(folder, name, verify)
    if not snapshots:
        raise ValueError(
            f'{folder} holds no snapshots; set training.ema_snapshots in the config, '
            'or train with ema_snapshots=8'
        )
    names = sorted({_run_of(snapshot) for snapshot in snapshots})
    if len(names) > 1:
        raise ValueError(f'name must be one of the runs {", ".join(names)} in {folder}; got {name}')
    return snapshots


def _run_of(snapshot: Snapshot) -> str:
    return snapshot.path.name.rpartition('_ema_')[0]
