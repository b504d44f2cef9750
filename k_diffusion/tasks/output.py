"""Write samples to disk."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
from pathlib import Path

from torch import Tensor

from ..core.extras import require
from ..core.files import whole_file
from ..core.images import make_grid, save_image
from ..core.views import show_tensors


@dataclasses.dataclass(frozen=True)
class Samples:
    """Result of a task that draws samples.

    Attributes:
        images: Images [N, C, H, W] in [-1, 1], or tensors [N, C, ...].
        labels: Their classes, or None.
        pictures: The file of each.
        grid: The file of the grid.
        seed: The seed.
    """

    images: Tensor
    labels: list[int] | None
    pictures: list[Path]
    grid: Path
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Target:
    """The destination of samples: a folder or a prefix of file names.

    A folder contains images/, grid.png and labels.txt; with a prefix the files are PREFIX_00000.png
    and so on (.npy for tensors).
    """

    folder: Path | None
    prefix: str | None

    @classmethod
    def of(cls, out: str | os.PathLike[str] | None, prefix: str | None, overwrite: bool) -> Target:
        """Return the target; `out` takes precedence over `prefix`.

        A folder that already holds samples is an error unless `overwrite` is True.
        """
        if prefix is not None and out is None:
            return cls(None, prefix)
        folder = Path(out) if out is not None else _first_free('samples')
        if (folder / 'images').exists() and not overwrite:
            raise ValueError(
                f'out must be a folder without samples; {folder} holds samples already, give '
                'another folder or pass '
                'overwrite=True'
            )
        return cls(folder, None)

    def make(self) -> None:
        """Create the folder, before samples are drawn, so that errors of the path show early."""
        folder = Path(f'{self.prefix}_').parent if self.folder is None else self.folder
        folder.mkdir(parents=True, exist_ok=True)

    def write(
        self, images: Tensor, labels: list[int] | None, seed: int = 0, pictures: bool = True
    ) -> Samples:
        """Write samples; images/ gets its name when all are written.

        Args:
            images: The samples [N, C, ...].
            labels: Their classes, or None.
            seed: The seed, for the result.
            pictures: Write .png files; otherwise .npy files.

        Returns:
            The samples with their files.
        """
        self.make()
        head = f'{self.prefix}_' if self.folder is None else f'{self.folder}/'
        images_head = head if self.folder is None else f'{head}.images/'
        if self.folder is not None:
            shutil.rmtree(images_head, ignore_errors=True)
            Path(images_head).mkdir()
        names = [
            Path(f'{images_head}{i:05}{".png" if pictures else ".npy"}') for i in range(len(images))
        ]
        for name, image in zip(names, images):
            if pictures:
                save_image(name, image)
            else:
                _save_array(name, image)
        save_image(
            f'{head}grid.png',
            make_grid(images) if pictures else make_grid(show_tensors(images), padding=2),
        )
        if labels is None:
            Path(f'{head}labels.txt').unlink(missing_ok=True)
        else:
            with whole_file(f'{head}labels.txt', sync=False) as temporary:
                temporary.write_text(''.join(f'{label}\n' for label in labels))
        if self.folder is not None:
            shutil.rmtree(self.folder / 'images', ignore_errors=True)
            final = Path(images_head).replace(self.folder / 'images')
            names = [final / name.name for name in names]
        return Samples(images, labels, names, Path(f'{head}grid.png'), seed)


def _save_array(path: Path, x: Tensor) -> None:
    """Write a tensor as a .npy file, whole or not at all."""
    numpy = require('numpy', 'train', 'writing .npy')
    with whole_file(path, sync=False) as temporary, open(temporary, 'wb') as file:
        numpy.save(file, x.numpy(), allow_pickle=False)


def _first_free(name: str) -> Path:
    """Return the first of name, name-2, name-3, ... that does not exist."""
    return next(
        path
        for i in itertools.count(1)
        if not (path := Path(name if i == 1 else f'{name}-{i}')).exists()
    )
