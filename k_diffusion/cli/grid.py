"""k-diffusion grid: pictures side by side as one picture."""
from __future__ import annotations

from collections.abc import Sequence

from ..core.names import escape_name
from ..tasks.grid import grid
from .entry import Parser, guarded

_EXAMPLE = 'example:\n  k-diffusion grid samples/images/*.png -o grid.png --nrow 10'


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion grid') -> int:
    parser = Parser(prog=prog, description=__doc__, epilog=_EXAMPLE)
    parser.add_argument('images', nargs='+', help='the pictures, in order')
    parser.add_argument('-o', '--output', '--out', dest='out', default='out.png', help='the file to write (default: out.png)')
    parser.add_argument('--nrow', type=int, help='pictures per row (default: as square as can be)')
    args = parser.parse_args(argv)

    def work() -> None:
        print(escape_name(grid(args.images, args.out, args.nrow)))
    return guarded(prog, work)
