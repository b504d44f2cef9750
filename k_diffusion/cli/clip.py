"""k-diffusion clip: draw images from a trained model, guided by texts and images with CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..tasks.clip import clip
from .flags import run_command
from .sample import samples_as_json, show_samples

_EXAMPLE = """examples:
  k-diffusion clip "a photo of the digit seven" --checkpoint runs/demo \\
    --clip-model my_clip_folder --no-clamp -cgs 50
  k-diffusion clip "a red apple:2" "a painting:0.5" --image sketch.png:0.3 \\
    --checkpoint runs/mine --cutn 8 --init sketch.png --sigma-start 5

A weight follows a prompt after a colon; a negative weight avoids the prompt. CLIP models are those
of the transformers library: a folder that save_pretrained wrote, a name on the hub, or one of
OpenAI's names."""


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion clip', **defaults: Any) -> int:
    """Run the command.

    Args:
        argv: The arguments; sys.argv by default.
        prog: The name of the program in messages.
        **defaults: Defaults of a script that calls it.
    """
    return run_command(
        prog,
        clip,
        show_samples,
        about=__doc__,
        example=_EXAMPLE,
        as_json=samples_as_json,
        argv=argv,
        **defaults,
    )
