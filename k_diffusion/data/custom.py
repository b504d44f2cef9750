"""A data set of one's own: a Python file with a function that returns it."""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..core.extras import require
from ..core.names import escape_name
from ..core.python_files import load_name
from .datasets import Dataset
from .opening import DATASETS, PictureConfig, Request
from .pictures import UnreadablePicture, picture_bytes


@DATASETS.register('custom')
@dataclass(kw_only=True)
class CustomConfig(PictureConfig):
    """location: a .py file, relative to the config file; get_dataset: its function, called as
    get_dataset(config, transform=...).

    It returns a sequence of items; an item's picture is at image_key and, with num_classes, its
    class at class_key. The transform makes a Pillow picture into the uint8 tensor [C, H, W] that
    the picture must be; a Pillow picture itself serves too.
    """

    type: Literal['custom'] = 'custom'
    get_dataset: str = 'get_dataset'
    config: dict[str, Any] = field(default_factory=dict)

    def open(self, request: Request) -> Dataset:
        path = request.base_dir / Path(self.given_location()).expanduser()
        if not request.allow_code:
            raise ValueError(
                f'this config wants to run the Python file {path}, which is refused unless you '
                'allow it; '
                'read it, and if you trust it pass allow_code=True'
            )
        if not path.is_file():
            raise FileNotFoundError(
                f'there is no file {path}; dataset.location must be a .py file, relative to the '
                'config file'
            )
        return CustomItems(path, self, request.size, request.channels)


class CustomItems(Dataset):
    """The items that a function in a file returns.

    (Each worker process calls it anew: what a file defines does not travel.)
    """

    def __init__(
        self, path: Path, section: CustomConfig, size: tuple[int, int], channels: int
    ) -> None:
        super().__init__((channels, *size), [str(i) for i in range(section.num_classes)])
        self.source = f'the data set of {escape_name(path)}'
        self._arguments = path, section, size, channels
        self.section = section
        self.transform = partial(
            picture_bytes, size=size, channels=channels, grey_range=section.grey_range
        )
        try:
            get_dataset = _function(path, section.get_dataset)
            self.items = get_dataset(section.config, transform=self.transform)
            self.length = len(self.items)
        except Refused:
            raise
        except (Exception, SystemExit) as error:  # (code of one's own raises anything)
            raise ValueError(
                f'{self.source} cannot be opened: {_describe_error(error, path)}'
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return CustomItems, self._arguments

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        pillow, reason = require('PIL.Image', 'train', 'reading pictures'), None
        try:
            item = self.items[index]
            image = self._part(item, 'image_key', index)
            label = self._part(item, 'class_key', index) if self.num_classes else None
            if isinstance(image, pillow.Image):
                image = self.transform(image)
        except (Refused, UnreadablePicture):
            raise
        except OSError as error:  # what Pillow raises at a damaged file
            reason = str(error)
        except (Exception, SystemExit) as error:  # (code of one's own raises anything)
            reason = _describe_error(error, self._arguments[0])
            raise ValueError(f'item {index} of {self.source} cannot be read: {reason}') from error
        if reason is not None:  # (a chained error would keep what was decoded)
            raise UnreadablePicture(reason)
        if (
            not isinstance(image, Tensor)
            or image.dtype != torch.uint8
            or tuple(image.shape) != self.image_shape
        ):
            found = (
                f'{image.dtype} {list(image.shape)}'
                if isinstance(image, Tensor)
                else type(image).__name__
            )
            raise ValueError(
                f'the picture of item {index} of {self.source} is {found}; '
                f'it must be a uint8 tensor {list(self.image_shape)}, as the transform makes, or '
                'a Pillow picture'
            )
        return {'image': image} | (
            {'class_cond': self.checked_class(label, index)} if self.num_classes else {}
        )

    def _part(self, item: Any, name: str, index: int) -> Any:
        key = getattr(self.section, name)
        try:
            return item[key]
        except (KeyError, IndexError, TypeError):
            raise Refused(
                f'dataset.{name} is {key!r}, and item {index} of {self.source} '
                'has no such entry; name the one that holds it'
            ) from None


class Refused(ValueError):
    """The data set does not match the config; the text is a whole sentence."""


def _describe_error(error: BaseException, path: Path) -> str:
    """Return an exception's type and text, and the line of the file that it came from."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    where = f' (line {lines[-1]} of {path.name})' if lines else ''
    try:
        text = str(error)
    except Exception:  # (of a class of one's own)
        text = ''
    return f'{type(error).__name__}{": " if text else ""}{text}{where}'


def _function(path: Path, name: str) -> Any:
    if path.suffix != '.py':
        raise Refused(f'{path} is not a Python file; dataset.location must be a .py file')
    try:
        return load_name(path, name, allow_code=True)  # (CustomConfig.open has asked)
    except LookupError:
        raise Refused(
            f'{path} has no function {name!r}; dataset.get_dataset must name one'
        ) from None
