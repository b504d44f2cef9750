"""Data sets of the Hugging Face Hub, or saved in its format, through the package datasets."""
from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..core.extras import require
from ..core.hub import quick_hub
from ..core.names import escape_name
from .datasets import Dataset
from .opening import DATASETS, PictureConfig, Request
from .pictures import UnreadablePicture, load_picture, picture_bytes


@DATASETS.register('huggingface')
@dataclass(kw_only=True)
class HuggingFaceConfig(PictureConfig):
    """The training split of a data set: location is its name or folder, image_key and class_key are columns, by name or number."""

    type: Literal['huggingface'] = 'huggingface'

    def open(self, request: Request) -> Dataset:
        datasets = require('datasets', 'hf', "the dataset type 'huggingface'")
        name = self.given_location()
        try:
            with quick_hub(name):
                rows = datasets.load_dataset(name, split='train')
        except (OSError, ValueError) as error:
            raise ValueError(f'the Hugging Face data set {name!r} cannot be loaded ({error}); check dataset.location and the network, '
                             'or give the folder of a copy') from None
        image_key = _column(rows, self.image_key, 'image_key')
        class_key = _column(rows, self.class_key, 'class_key') if self.num_classes else None
        if isinstance(rows.features[image_key], datasets.Image):
            rows = rows.cast_column(image_key, datasets.Image(decode=False))  # so that our own limits hold
        return HuggingFaceRows(rows, image_key, class_key, self.num_classes, name, request, self.grey_range)


def _column(rows: Any, key: int | str, name: str) -> str:
    columns = list(rows.column_names)
    if isinstance(key, int) and 0 <= key < len(columns):
        return columns[key]
    if key in columns:
        return str(key)
    raise ValueError(f'dataset.{name} is {key!r}, but the columns of the data set are {", ".join(columns)}; name one of them')


class HuggingFaceRows(Dataset):
    """The rows of a datasets.Dataset, decoded when they are asked for."""

    def __init__(self, rows: Any, image_key: str, class_key: str | None, num_classes: int, name: str, request: Request,
                 grey_range: tuple[float, float] | None = None) -> None:
        given = getattr(rows.features[class_key], 'names', None) if class_key else None
        super().__init__((request.channels, *request.size), given or [str(i) for i in range(num_classes)])
        self.rows, self.image_key, self.class_key, self.grey_range = rows, image_key, class_key, grey_range
        self.source = f'the Hugging Face data set {escape_name(name)}'

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        channels, *size = self.image_shape
        try:
            row = self.rows[index]
        except Exception as error:  # (each of its formats has faults of its own)
            raise ValueError(f'{self.name(index)} of {self.source} cannot be read: '
                             f'{type(error).__name__}: {error}') from error
        item: dict[str, Any] = {'image': _decoded(row[self.image_key], (size[0], size[1]), channels, self.grey_range)}
        return item | {'class_cond': self.checked_class(row[self.class_key], index)} if self.class_key else item

    def name(self, index: int) -> str:
        return f'row {index}'

    def fingerprint(self) -> str | None:
        return f'{self.source} {self.rows._fingerprint} {self.image_key} {self.class_key} {self.grey_range}'


def _decoded(value: Any, size: tuple[int, int], channels: int, grey_range: tuple[float, float] | None) -> Any:
    """A picture from what a column of them holds: the bytes or path of a file, or a Pillow picture."""
    if isinstance(value, Mapping):
        source = io.BytesIO(value['bytes']) if value.get('bytes') else value['path']
        return load_picture(source, size, channels, grey_range=grey_range)
    if value is None:
        raise UnreadablePicture('the row holds no picture')
    return picture_bytes(value, size, channels, grey_range=grey_range)


def hf_datasets_augs_helper(examples: Mapping[str, Any], transform: Callable[[Any], Any], image_key: str,
                            mode: str = 'RGB') -> dict[str, list[Any]]:
    """The pictures of a batch of rows, converted to a mode and transformed, as {image_key: [...]} (for `Dataset.set_transform`)."""
    return {image_key: [transform(image.convert(mode)) for image in examples[image_key]]}
