"""k-diffusion calibrate: fit a sampler to a model, so that few steps give the result of many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..sampling import Calibration
from ..tasks.calibrate import CalibrationResult, calibrate
from .flags import run_command

_EXAMPLE = """example:
  k-diffusion calibrate --checkpoint runs/demo --steps 5,8,10
  k-diffusion calibrate --checkpoint runs/demo --steps 8 --guidance auto
  k-diffusion sample --checkpoint runs/demo --steps 8

`sample` then uses the calibrated sampler when the number of steps and the guidance match those of a
calibration."""


def _show(result: CalibrationResult) -> str:
    return '\n'.join([*map(_line, result.calibrations), str(result.file)])


def _line(calibration: Calibration) -> str:
    """Return the result for a number of steps."""
    score = calibration.scores
    published = f'{score["published_median"]:.4f} ({score["published_rms"]:.4f})'
    if calibration.recipe is not None:
        text = (
            f'no fit was nearer to converged samples than {calibration.recipe}, '
            f'median {published}, by both median and rms, so it is kept '
            f'(the best fit: {score.get("fitted_median", math.inf):.4f} '
            f'({score.get("fitted_rms", math.inf):.4f}))'
        )
    else:
        text = (
            f'median distance to converged samples {score["median"]:.4f} (rms '
            f'{score["rms"]:.4f}), of the best published recipe {published}; '
            f'base {calibration.base}'
        )
    astray = (
        f'{score["astray"]:.0f} and {score["published_astray"]:.0f} of {score["items"]:.0f} '
        'end as something else'
    )
    quality = ', '.join(f'{name} {value:.3f}' for name, value in calibration.quality.items())
    interval = (
        ''
        if calibration.guidance_interval is None
        else ' from {:g} to {:g}'.format(*calibration.guidance_interval)
    )
    choice = (
        f'; guidance {calibration.guidance:g}{interval} was chosen: {quality}' if quality else ''
    )
    return f'{calibration.steps} steps: {text}; {astray}{choice}'


def _as_json(result: CalibrationResult) -> dict[str, Any]:
    return {
        'file': str(result.file),
        'calibrations': [
            {
                'steps': c.steps,
                'base': c.base,
                'published': c.published,
                'guidance': c.guidance,
                'guidance_interval': c.guidance_interval,
                **c.scores,
                **c.quality,
            }
            for c in result.calibrations
        ],
    }


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion calibrate') -> int:
    """Run the command.

    Args:
        argv: The arguments; sys.argv by default.
        prog: The name of the program in messages.
    """
    return run_command(
        prog, calibrate, _show, about=__doc__, example=_EXAMPLE, as_json=_as_json, argv=argv
    )
