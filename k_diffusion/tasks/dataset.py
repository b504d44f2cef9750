"""k-diffusion dataset: looks through a folder or archive of pictures before training."""
from __future__ import annotations

import os
from typing import Any

from ..core.images import from_bytes, make_grid, save_image
from ..data.inspection import Inspection, inspect_pictures


def dataset(place: str | os.PathLike[str], size: int = 64, sheet: str | os.PathLike[str] | None = None, progress: Any = None,
            grey_range: tuple[float, float] | None = None) -> Inspection:
    """Looks through the pictures of a folder or archive at size x size, and writes a contact sheet where a path is given."""
    if size < 1:
        raise ValueError(f'--size is {size}; it must be at least 1')
    found = inspect_pictures(place, (size, size), progress=progress, grey_range=grey_range)
    if sheet is not None and found.sample is not None:
        save_image(sheet, make_grid(from_bytes(found.sample), padding=2, fill=1.))
    return found
