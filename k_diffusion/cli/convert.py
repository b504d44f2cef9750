"""k-diffusion convert: the averaged weights of a training checkpoint as a .safetensors file for inference."""
from __future__ import annotations

from collections.abc import Sequence

from ..core.names import escape_name
from ..tasks.convert import _DTYPES, convert
from .entry import Parser, guarded

_EXAMPLE = 'example:\n  k-diffusion convert runs/demo/demo_00001450.pth -o demo.safetensors --dtype fp16'


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion convert') -> int:
    parser = Parser(prog=prog, description=__doc__, epilog=_EXAMPLE)
    parser.add_argument('checkpoint', help='the .pth checkpoint')
    parser.add_argument('--config', help='its config, where the checkpoint carries none')
    parser.add_argument('-o', '--output', '--out', dest='out',
                        help='the file to write (default: the checkpoint with the ending .safetensors)')
    parser.add_argument('--dtype', choices=tuple(_DTYPES), default='fp16', help='the type of the weights (default: fp16)')
    parser.add_no_verify()
    args = parser.parse_args(argv)

    def work() -> None:
        print(escape_name(convert(args.checkpoint, args.out, args.dtype, args.config, args.verify)))
    return guarded(prog, work)
