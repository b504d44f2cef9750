"""k-diffusion sample: draw images from a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..tasks.output import Samples
from ..tasks.sample import sample
from .flags import run_command

_EXAMPLE = """examples:
  k-diffusion sample --checkpoint runs/demo -n 64 --seed 1
  k-diffusion sample --checkpoint model.safetensors -n 16 --classes 3,5 --guidance 1.5 \\
    --sampler heun --steps 30"""


def show_samples(samples: Samples) -> str:
    """Return the location of samples in words.

    Args:
        samples: The samples.
    """
    return (
        f'{len(samples.pictures)} images, {samples.pictures[0]} to '
        f'{samples.pictures[-1].name}\ngrid: {samples.grid}'
    )


def samples_as_json(samples: Samples) -> dict[str, Any]:
    """Return the location of samples as plain values.

    Args:
        samples: The samples.
    """
    return {
        'n': len(samples.pictures),
        'first': str(samples.pictures[0]),
        'grid': str(samples.grid),
        'seed': samples.seed,
    }


def main(
    argv: Sequence[str] | None = None, prog: str = 'k-diffusion sample', **defaults: Any
) -> int:
    """Run the command.

    Args:
        argv: The arguments; sys.argv by default.
        prog: The name of the program in messages.
        **defaults: Defaults of a script that calls it.
    """
    return run_command(
        prog,
        sample,
        show_samples,
        about=__doc__,
        example=_EXAMPLE,
        as_json=samples_as_json,
        argv=argv,
        **defaults,
    )
