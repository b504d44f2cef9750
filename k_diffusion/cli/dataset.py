"""k-diffusion dataset: check a folder or archive of images, or pack a folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from ..tasks.dataset import describe_inspection, inspect_dataset
from ..tasks.pack import describe_packing, pack_dataset
from .flags import run_command

_PACK = """k-diffusion dataset pack: write a folder of images or arrays as tar
shards, for training from a stream."""
_PACK_EXAMPLE = """example:
  k-diffusion dataset pack data/icons --classes folders -o data/icon-shards

Files are packed unchanged. Files beside an image with its name and the suffix .txt (its caption),
.json or .cls (its class) are packed with it. The same files and flags give the same bytes."""

_EXAMPLE = """examples:
  k-diffusion dataset data/icons --size 32 -o icons.png
  k-diffusion dataset pack data/icons -o data/icon-shards      (see pack --help)

Every image is decoded once, by the rules of training. sigma_data is the value for the config.
The contact sheet shows 64 images as the model receives them."""


def _as_json(result: Any) -> dict[str, Any]:
    names = (
        'source',
        'files',
        'readable',
        'formats',
        'modes',
        'broken',
        'passed',
        'range',
        'duplicates',
        'channels',
        'mean',
        'sigma_data',
    )
    return {
        **{name: getattr(result, name) for name in names},
        'folders': result.classes,
        'sizes': {f'{w}x{h}': n for (w, h), n in result.sizes.items()},
    }


def _packed_as_json(result: Any) -> dict[str, Any]:
    return {**vars(result), 'folder': str(result.folder)}


def _show_progress(done: int, total: int) -> None:
    if sys.stderr.isatty() and (done % 64 == 0 or done == total):
        end = '\n' if done == total else ''
        print(f'\r{done:,} of {total:,}', end=end, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion dataset') -> int:
    """Run the command; with `pack` as the first argument write shards.

    A folder named pack is ./pack.

    Args:
        argv: The arguments; sys.argv by default.
        prog: The name of the program in messages.
    """
    argv = sys.argv[1:] if argv is None else argv
    if list(argv[:1]) == ['pack']:
        return run_command(
            f'{prog} pack',
            pack_dataset,
            describe_packing,
            about=_PACK,
            example=_PACK_EXAMPLE,
            as_json=_packed_as_json,
            argv=argv[1:],
            progress=_show_progress,
        )
    return run_command(
        prog,
        inspect_dataset,
        describe_inspection,
        about=__doc__,
        example=_EXAMPLE,
        as_json=_as_json,
        argv=argv,
        progress=_show_progress,
    )
