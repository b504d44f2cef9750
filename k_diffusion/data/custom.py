"""Custom data sets: a Python file with a function that returns one."""

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
    """A data set made by a function in a Python file.

    The function is called as get_dataset(config, transform=...) and returns a sequence of items.
    The image of an item is at image_key and, with num_classes, its class at class_key. The
    transform converts a Pillow image to a uint8 tensor [C, H, W]; a Pillow image is accepted too.

    Attributes:
        location: The .py file, relative to the config file.
        get_dataset: The name of the function.
        config: The argument of the function.
    """

    type: Literal['custom'] = 'custom'
    get_dataset: str = 'get_dataset'
    config: dict[str, Any] = field(default_factory=dict)

    def open(self, request: Request) -> Dataset:
        """Open the data set.

        Args:
            request: The size and channels of the items, and the permission to run code.

        Raises:
            ValueError: If running the file is not permitted.
            FileNotFoundError: If there is no such file.
        """
        path = request.base_dir / Path(self.require_location()).expanduser()
        if not request.allow_code:
            raise ValueError(
                f'the config names the Python file {path}, which runs only with allow_code=True; '
                'read it, and pass that if you trust it'
            )
        if not path.is_file():
            raise FileNotFoundError(
                f'there is no file {path}; dataset.location must be a .py file, relative to the '
                'config file'
            )
        return CustomItems(path, self, request.size, request.channels)


class CustomItems(Dataset):
    """The items that a function in a file returns.

    Each worker process calls it again, because definitions in a file cannot be pickled.
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
        except InvalidCustomData:
            raise
        except (Exception, SystemExit) as error:  # custom code may raise anything
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
        except (InvalidCustomData, UnreadablePicture):
            raise
        except OSError as error:  # what Pillow raises at a damaged file
            reason = str(error)
        except (Exception, SystemExit) as error:  # custom code may raise anything
            reason = _describe_error(error, self._arguments[0])
            raise ValueError(f'item {index} of {self.source} cannot be read: {reason}') from error
        if reason is not None:  # (a chained error would keep what was decoded)
            raise UnreadablePicture(reason)
        if (
            not isinstance(image, Tensor)
            or image.dtype != torch.uint8
            or tuple(image.shape) != self.image_shape
        ):
            problem = (
                f'{image.dtype} {list(image.shape)}'
                if isinstance(image, Tensor)
                else type(image).__name__
            )
            raise ValueError(
                f'the image of item {index} of {self.source} must be a uint8 tensor '
                f'{list(self.image_shape)}, as the transform returns, or a Pillow image; got '
                f'{problem}'
            )
        return {'image': image} | (
            {'class_cond': self.checked_class(label, index)} if self.num_classes else {}
        )

    def _part(self, item: Any, name: str, index: int) -> Any:
        key = getattr(self.section, name)
        try:
            return item[key]
        except (KeyError, IndexError, TypeError):
            raise InvalidCustomData(
                f'dataset.{name} must name an entry of the items; got {key!r}, which item {index} '
                'of '
                f'{self.source} lacks'
            ) from None


class InvalidCustomData(ValueError):
    """The data set does not fit the config; the text is a whole sentence."""


def _describe_error(error: BaseException, path: Path) -> str:
    """Return the type and text of an exception, and the line of the file that raised it."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    where = f' (line {lines[-1]} of {path.name})' if lines else ''
    try:
        text = str(error)
    except Exception:  # of a custom class
        text = ''
    return f'{type(error).__name__}{": " if text else ""}{text}{where}'


def _function(path: Path, name: str) -> Any:
    if path.suffix != '.py':
        raise InvalidCustomData(f'dataset.location must be a .py file; got {path}')
    try:
        return load_name(path, name, allow_code=True)  # (CustomConfig.open has asked)
    except LookupError:
        raise InvalidCustomData(
            f'dataset.get_dataset must name a function of {path}; got {name!r}'
        ) from None
