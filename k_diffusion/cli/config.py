"""k-diffusion config: the config that an inference file (.safetensors) or a checkpoint (.pth) carries, as a .json file."""
from __future__ import annotations

from collections.abc import Sequence

from ..core.names import escape_name
from ..tasks.config import config
from .entry import Parser, guarded

_EXAMPLE = 'example:\n  k-diffusion config demo.safetensors -o demo.json'


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
