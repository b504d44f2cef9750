"""k-diffusion grid: pictures side by side as one picture."""
from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ..core.extras import require
from ..core.images import from_pil_image, make_grid, save_image
from ..data.pictures import readable_formats


def grid(images: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str] = 'out.png', nrow: int | None = None) -> Path:
    """Writes the pictures, all of one mode and size, as one picture of `nrow` per row (ceil(sqrt(n)) where not given)."""
    if nrow is not None and nrow < 1:
        raise ValueError(f'--nrow is {nrow}; it must be at least 1')
    if not Path(out).absolute().parent.is_dir():
        raise ValueError(f'the folder of {out} does not exist; make it, or name another file with -o')
    loaded = [_load(path) for path in images]
    for path, (kind, _) in zip(images, loaded):
        if kind != loaded[0][0]:
            raise ValueError(f'{path} is {kind} and {images[0]} is {loaded[0][0]}; a grid takes pictures of one mode and size')
    save_image(out, make_grid([picture for _, picture in loaded], nrow))
    return Path(out)


def _load(path: str | os.PathLike[str]) -> tuple[str, Tensor]:
    """What a picture is, in words, and its pixels."""
    with require('PIL.Image', 'train', 'reading pictures').open(path, formats=readable_formats()) as picture:
        kind = f'{picture.mode} {picture.width}x{picture.height}'
        if picture.mode not in ('L', 'LA', 'RGB', 'RGBA'):
            picture = picture.convert('RGBA' if 'transparency' in picture.info else 'RGB')
        return kind, from_pil_image(picture)
