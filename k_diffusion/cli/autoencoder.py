"""k-diffusion train-autoencoder: train the first stage of latent diffusion on images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.names import escape_name
from ..tasks.autoencoder import TrainedAutoencoder, train_autoencoder
from .flags import run_command

_EXAMPLE = """example:
  k-diffusion train-autoencoder --config autoencoders/icons --name icons-ae

With "encoder": {"type": "autoencoder", "location": "runs/icons-ae"} in its config a model is
trained on the latents."""


def _show(result: TrainedAutoencoder) -> str:
    return (
        f'{escape_name(result.path)}, step {result.step:,}: error {result.error:.3f} '
        f'in [-1, 1]\noriginals above reconstructions: {escape_name(result.pictures)}'
    )


def _as_json(result: TrainedAutoencoder) -> dict[str, Any]:
    return {
        'path': str(result.path),
        'pictures': str(result.pictures),
        'step': result.step,
        'error': result.error,
    }


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion train-autoencoder') -> int:
    """Run the command.

    Args:
        argv: The arguments; sys.argv by default.
        prog: The name of the program in messages.
    """
    return run_command(
        prog, train_autoencoder, _show, about=__doc__, example=_EXAMPLE, as_json=_as_json, argv=argv
    )
