"""k-diffusion evaluate: measure the quality of the samples of a trained model."""

from __future__ import annotations

from collections.abc import Sequence

from ..tasks.evaluate import Evaluation, evaluate
from .flags import run_command

_EXAMPLE = """examples:
  k-diffusion evaluate --checkpoint runs/demo -n 10000
  k-diffusion evaluate --checkpoint runs/cifar --metrics fid,fid_infinity,kid \\
    --extractor inception -n 50000
  torchrun --nproc-per-node 2 -m k_diffusion.cli evaluate --checkpoint runs/demo -n 10000

Run the same command again to resume."""


def _show(evaluation: Evaluation) -> str:
    """Return values as lines, with errors and 95 % intervals where available."""
    lines, values = [], evaluation.values
    for name, value in values.items():
        if name.endswith(('_stderr', '_low', '_high')):
            continue
        error = f' +- {values[f"{name}_stderr"]:.2g}' if f'{name}_stderr' in values else ''
        between = (
            f' (95 %: {values[f"{name}_low"]:.4g} to {values[f"{name}_high"]:.4g})'
            if f'{name}_low' in values
            else ''
        )
        lines.append(f'{name:<14}{value:.5g}{error}{between}')
    copies = f', likeliest copies: {evaluation.picture}' if evaluation.picture else ''
    return '\n'.join([*lines, f'written to {evaluation.file}{copies}'])


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion evaluate') -> int:
    """Run the command.

    Args:
        argv: The arguments; sys.argv by default.
        prog: The name of the program in messages.
    """
    return run_command(
        prog,
        evaluate,
        _show,
        about=__doc__,
        example=_EXAMPLE,
        argv=argv,
        as_json=lambda evaluation: {**evaluation.values, **evaluation.facts},
    )
