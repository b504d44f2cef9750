"""k-diffusion demo: trains on the shipped digits for about a minute, then draws a grid of samples."""
from __future__ import annotations

from ..config import shipped_config
from .output import Samples
from .run.settings import Run, RunSettings
from .sample import sample
from .train import train


def demo(name: str = 'demo', run_dir: str | None = None, n: int = 64) -> tuple[Run, Samples | None]:
    """Trains configs/config_demo.json as the run `name` (or finds it trained) and samples a grid of n digits beside it.

    There are no samples where the training was interrupted.
    """
    if n < 1:
        raise ValueError(f'-n is {n}; it must be at least 1')
    run = train(RunSettings(shipped_config('config_demo'), name, run_dir, demo_every=0, evaluate_n=0))
    if run.status == 'interrupted':
        return run, None
    return run, sample(run.checkpoint, n, run.folder / 'samples', overwrite=True)
