"""k-diffusion grid: pictures side by side as one picture."""
from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..core.files import whole_file
from ..core.images import from_pil_image, make_grid, to_pil_image
from .entry import Parser, guarded

_EXAMPLE = 'example:\n  k-diffusion grid samples/images/*.png -o grid.png --nrow 10'


def grid(images: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str] = 'out.png', nrow: int | None = None) -> Path:
    """Writes the pictures, all of one mode and size, as one picture of `nrow` per row (ceil(sqrt(n)) where not given)."""
    if nrow is not None and nrow < 1:
        raise ValueError(f'--nrow is {nrow}; it must be at least 1')
    pictures: list[Image.Image] = [Image.open(path) for path in images]
    first = pictures[0]
    for path, picture in zip(images, pictures):
        if (picture.mode, picture.size) != (first.mode, first.size):
            raise ValueError(f'{path} is {picture.mode} {picture.width}x{picture.height} and {images[0]} is {first.mode} '
                             f'{first.width}x{first.height}; a grid takes pictures of one mode and size')
    if first.mode not in ('L', 'LA', 'RGB', 'RGBA'):
        pictures = [picture.convert('RGBA' if 'transparency' in first.info else 'RGB') for picture in pictures]
    whole = to_pil_image(make_grid([from_pil_image(picture) for picture in pictures], nrow))
    with whole_file(out) as temporary:
        whole.save(temporary)
    return Path(out)


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion grid') -> int:
    parser = Parser(prog=prog, description=__doc__, epilog=_EXAMPLE)
    parser.add_argument('images', nargs='+', help='the pictures, in order')
    parser.add_argument('-o', '--output', '--out', dest='out', default='out.png', help='the file to write (default: out.png)')
    parser.add_argument('--nrow', type=int, help='pictures per row (default: as square as can be)')
    args = parser.parse_args(argv)

    def work() -> None:
        print(grid(args.images, args.out, args.nrow))
    return guarded(prog, work)
