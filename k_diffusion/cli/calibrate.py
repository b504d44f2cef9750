"""k-diffusion calibrate: a sampler is fitted to a model, so that few steps give what many would."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..tasks.calibrate import CalibrationResult, calibrate
from .flags import run_command

_EXAMPLE = '''example:
  k-diffusion calibrate --checkpoint runs/demo --steps 5,8,10
  k-diffusion sample --checkpoint runs/demo --steps 8

`sample` then takes the calibrated sampler by itself where the number of steps and the guidance are those of one.'''


def _show(result: CalibrationResult) -> str:
    lines = [f'{c.steps} steps: median distance to converged samples {c.scores["median"]:.4f} (rms {c.scores["rms"]:.4f}), before fitting '
             f'{c.scores["start_median"]:.4f} ({c.scores["start_rms"]:.4f}); base {c.base}' for c in result.calibrations]
    return '\n'.join([*lines, str(result.file)])


def _as_json(result: CalibrationResult) -> dict[str, Any]:
    return {'file': str(result.file), 'calibrations': [{'steps': c.steps, 'base': c.base, **c.scores} for c in result.calibrations]}


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion calibrate') -> int:
    """Run the command."""
    return run_command(prog, calibrate, _show, about=__doc__, example=_EXAMPLE, as_json=_as_json, argv=argv)
