"""Train on the shipped digits for about a minute, and draw a grid of samples."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from ..config import shipped_config
from ..core.settings import at_least, check_settings, setting, takes_settings
from .output import Samples
from .run.settings import Run, TrainSettings
from .sample import sample
from .train import train


@dataclass(frozen=True)
class DemoSettings:
    """Settings of `demo`."""

    name: str = setting('demo', 'the name of the run')
    run_dir: str | os.PathLike[str] | None = setting(
        None, 'the folder of the run (default: runs/NAME)'
    )
    n: int = setting(64, 'number of samples in the grid', flags=('-n',))

    def __post_init__(self) -> None:
        check_settings(at_least(self, 1, 'n'))


@dataclass(frozen=True)
class Demo:
    """Result of `demo`.

    Attributes:
        run: The training run.
        samples: Samples of its model; None if training was interrupted.
        seconds: The time of training and sampling.
        run_dir: The requested folder, or None.
    """

    run: Run
    samples: Samples | None
    seconds: float
    run_dir: str | os.PathLike[str] | None

    @property
    def exit_status(self) -> int:
        """That of the run."""
        return self.run.exit_status


@takes_settings(DemoSettings)
def demo(settings: DemoSettings) -> Demo:
    """Train the shipped config config_demo, unless that run is already trained, and draw samples.

    Args:
        settings: The settings, or the fields of DemoSettings as arguments.

    Returns:
        The run and the samples, which are in its folder.
    """
    start = time.monotonic()
    run = train(
        TrainSettings(
            shipped_config('config_demo'),
            settings.name,
            settings.run_dir,
            demo_every=0,
            evaluate_n=0,
        )
    )
    samples = None
    if run.status != 'interrupted':
        samples = sample(run.checkpoint, settings.n, run.folder / 'samples', overwrite=True)
    return Demo(run, samples, time.monotonic() - start, settings.run_dir)
