"""k-diffusion config: the config that an inference file (.safetensors) or a checkpoint (.pth) carries, as a .json file."""
from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..config import read_weights
from ..core.files import write_json
from ..core.names import escape_name
from ..core.weights import load_safetensors_config
from .entry import Parser, guarded

_EXAMPLE = 'example:\n  k-diffusion config demo.safetensors -o demo.json'


def config(checkpoint: str | os.PathLike[str], out: str | os.PathLike[str] | None = None,
           verify: bool = True) -> Path:
    """Writes the config inside a .safetensors or .pth file as JSON and returns the path of what it wrote."""
    if Path(checkpoint).suffix == '.safetensors':
        found = load_safetensors_config(checkpoint)
    else:
        found = read_weights(checkpoint, verify=verify)[1]
    if found is None:
        raise ValueError(f'{checkpoint} carries no config')
    path = Path(out) if out is not None else Path(checkpoint).with_suffix('.json')
    write_json(path, found)
    return path


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion config') -> int:
    parser = Parser(prog=prog, description=__doc__, epilog=_EXAMPLE)
    parser.add_argument('checkpoint', help='the .safetensors or .pth file')
    parser.add_argument('-o', '--output', '--out', dest='out',
                        help='the file to write (default: the checkpoint with the ending .json)')
    parser.add_no_verify()
    args = parser.parse_args(argv)

    def work() -> None:
        print(escape_name(config(args.checkpoint, args.out, args.verify)))
    return guarded(prog, work)
