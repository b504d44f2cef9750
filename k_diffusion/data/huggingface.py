"""Data sets of the Hugging Face Hub or in its formats, through the package datasets."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ..core.extras import require
from ..core.hub import quick_hub
from ..core.names import escape_name
from ..core.random import derive_seed
from .datasets import Dataset
from .opening import DATASETS, PictureConfig, Request
from .pictures import UnreadablePicture, load_picture, picture_bytes
from .streams import RowStream


@DATASETS.register('huggingface')
@dataclass(kw_only=True)
class HuggingFaceConfig(PictureConfig):
    """A split of a Hugging Face data set.

    location is its name, its folder, or a folder that save_to_disk wrote. image_key, class_key and
    text_key are columns, by name or index.

    Attributes:
        split: The split.
        text_key: The column of texts.
        streaming: Read rows in order as they are needed.
        window: Number of rows that are shuffled together in a stream.
    """

    type: Literal['huggingface'] = 'huggingface'
    split: str = 'train'
    text_key: int | str | None = None
    streaming: bool = False
    window: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1:
            raise ValueError(f'window must be >= 1 (1 disables shuffling); got {self.window}')

    def open(self, request: Request) -> Dataset:
        """Open the split.

        Args:
            request: The size and channels of the items.

        Raises:
            ValueError: If it cannot be loaded, or has other columns.
        """
        datasets = require('datasets', 'hf', "the dataset type 'huggingface'")
        rows = self._load(datasets)
        names = _column_names(rows)
        columns = Columns(
            _column(names, self.image_key, 'image_key'),
            _column(names, self.class_key, 'class_key') if self.num_classes else None,
            None if self.text_key is None else _column(names, self.text_key, 'text_key'),
        )
        if isinstance((rows.features or {}).get(columns.image), datasets.Image):
            rows = rows.cast_column(
                columns.image, datasets.Image(decode=False)
            )  # so that our own limits hold
        return (HuggingFaceStream if self.streaming else HuggingFaceRows)(
            rows, columns, self, request
        )

    def _load(self, datasets: Any) -> Any:
        name = self.require_location()
        folder = self.place()
        try:
            if (folder / 'state.json').is_file() or (folder / 'dataset_dict.json').is_file():
                return self._load_saved(datasets.load_from_disk(str(folder)))
            with quick_hub(name):
                return datasets.load_dataset(
                    name, split=self.split, **({'streaming': True} if self.streaming else {})
                )
        except (OSError, ValueError) as error:
            raise ValueError(
                f'the Hugging Face data set {name!r} cannot be loaded ({error}); check '
                'dataset.location, dataset.split and the network, or set the folder of a copy'
            ) from None

    def _load_saved(self, dataset: Any) -> Any:
        """Return the split of a saved data set or dict of data sets."""
        if isinstance(dataset, Mapping):
            if self.split not in dataset:
                raise ValueError(f'it has no split {self.split!r}, only {", ".join(dataset)}')
            dataset = dataset[self.split]
        return dataset.to_iterable_dataset() if self.streaming else dataset


class Columns(NamedTuple):
    """The columns that are read."""

    image: str
    label: str | None
    text: str | None


def _column_names(rows: Any) -> list[str]:
    """Return the columns; for a stream without names those of its first row."""
    return list(rows.column_names) if rows.column_names else list(next(iter(rows), {}))


def _column(columns: list[str], key: int | str, name: str) -> str:
    if isinstance(key, int) and 0 <= key < len(columns):
        return columns[key]
    if key in columns:
        return str(key)
    raise ValueError(f'dataset.{name} must be one of the columns {", ".join(columns)}; got {key!r}')


class HuggingFaceRows(Dataset):
    """The rows of a datasets.Dataset, decoded on request.

    Rows with texts are never decoded all at once.
    """

    def __init__(
        self, rows: Any, columns: Columns, section: HuggingFaceConfig, request: Request
    ) -> None:
        super().__init__((request.channels, *request.size), _class_names(rows, columns, section))
        self.rows, self.columns, self.grey_range = rows, columns, section.grey_range
        self.source = f'the Hugging Face data set {escape_name(section.location)}'
        self.has_texts = self.streams = columns.text is not None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            row = self.rows[index]
        except Exception as error:  # the formats raise different errors
            raise ValueError(
                f'{self.name(index)} of {self.source} cannot be read: '
                f'{type(error).__name__}: {error}'
            ) from error
        return _item(self, row, index)

    def name(self, index: int) -> str:
        """Return the name of a row in messages.

        Args:
            index: Its index.
        """
        return f'row {index}'

    def fingerprint(self) -> str | None:
        """Return a text that changes with the rows."""
        return f'{self.source} {self.rows._fingerprint} {self.columns} {self.grey_range}'


class HuggingFaceStream(RowStream):
    """The rows of a datasets.IterableDataset in order.

    The order of its files is drawn from (seed, epoch).
    """

    def __init__(
        self, rows: Any, columns: Columns, section: HuggingFaceConfig, request: Request
    ) -> None:
        super().__init__(
            (request.channels, *request.size), _class_names(rows, columns, section), section.window
        )
        self.stream, self.columns, self.grey_range = rows, columns, section.grey_range
        self.source = f'the Hugging Face data set {escape_name(section.location)}'
        self.has_texts = columns.text is not None
        self._identity = f'{section.location} {section.split} {section.window}'

    def rows(self, seed: int, epoch: int) -> Iterator[Any]:
        """Return the rows of an epoch, with several files in random order (epoch -1: unshuffled).

        Args:
            seed: The seed of the run.
            epoch: The epoch.
        """
        stream = self.stream
        files = getattr(stream, 'num_shards', None) or getattr(stream, 'n_shards', None) or 1
        if epoch >= 0 and files > 1:
            stream = stream.shuffle(seed=derive_seed(seed, 'files', epoch) % 2**32, buffer_size=1)
        return iter(stream)

    def decode(self, row: Any, index: int) -> dict[str, Any]:
        """Return a row as an item.

        Args:
            row: The row.
            index: Its index.
        """
        return _item(self, row, index)

    def name(self, index: int) -> str:
        """Return the name of a row in messages.

        Args:
            index: Its index.
        """
        return f'row {index}'

    def fingerprint(self) -> str | None:
        """Return a text that identifies the stream."""
        return f'{self._identity} {self.columns} {self.grey_range}'


def _class_names(rows: Any, columns: Columns, section: HuggingFaceConfig) -> list[str]:
    feature = (rows.features or {}).get(columns.label)
    return getattr(feature, 'names', None) or [str(i) for i in range(section.num_classes)]


def _item(
    dataset: HuggingFaceRows | HuggingFaceStream, row: Mapping[str, Any], index: int
) -> dict[str, Any]:
    """Return a row as an item of a data set."""
    channels, *size = dataset.image_shape
    columns = dataset.columns
    item: dict[str, Any] = {
        'image': _decode_rows(row[columns.image], (size[0], size[1]), channels, dataset.grey_range)
    }
    if columns.label is not None:
        item['class_cond'] = dataset.checked_class(row[columns.label], index)
    if columns.text is not None:
        item['text'] = str(row[columns.text] or '')
    return item


def _decode_rows(
    value: Any, size: tuple[int, int], channels: int, grey_range: tuple[float, float] | None
) -> Any:
    """Return the image in a column: the bytes or path of a file, or a Pillow image."""
    if isinstance(value, Mapping):
        source = io.BytesIO(value['bytes']) if value.get('bytes') else value['path']
        return load_picture(source, size, channels, grey_range=grey_range)
    if value is None:
        raise UnreadablePicture('the row holds no picture')
    return picture_bytes(value, size, channels, grey_range=grey_range)


def hf_datasets_augs_helper(
    examples: Mapping[str, Any], transform: Callable[[Any], Any], image_key: str, mode: str = 'RGB'
) -> dict[str, list[Any]]:
    """Return the images of a batch of rows, converted to a mode and transformed.

    For `Dataset.set_transform`.

    Args:
        examples: The batch.
        transform: The transform.
        image_key: The column of images.
        mode: The mode of PIL.
    """
    return {image_key: [transform(image.convert(mode)) for image in examples[image_key]]}
