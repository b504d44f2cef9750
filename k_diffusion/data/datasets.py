"""Data sets: images of one size by index, each with its class if there are classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..core.images import from_bytes, to_pil_image
from ..core.names import escape_name
from ..core.random import generator
from .pictures import UnreadablePicture, picture_bytes


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, n: int) -> Tensor:
    """Return the order of the n images of an epoch, int64 [n]; it must never change.

    Args:
        seed: The seed of the run.
        epoch: The epoch.
        n: Number of images.
    """
    return torch.randperm(n, generator=generator(seed, 'epoch', epoch))


class Dataset(ABC):
    """Images of one size, each with its class if the set has classes.

    ds[i] is a dict with image uint8 [C, H, W], class_cond int and text str, as far as the set has
    them. An image that cannot be read raises UnreadablePicture. `skipped` lists those found so far
    as (name, reason); `notes` are messages for the user. Names are escaped everywhere.

    Args:
        image_shape: The shape of an item.
        class_names: The classes.
    """

    #: The name of the set in messages.
    source: str
    #: True if items are read on request and never all at once.
    streams = False
    #: True if items have texts.
    has_texts = False

    def __init__(self, image_shape: tuple[int, ...], class_names: Sequence[str] = ()) -> None:
        self.image_shape = image_shape
        self.class_names = [escape_name(name) for name in class_names]
        self.skipped: list[tuple[str, str]] = []
        self.notes: list[str] = []

    @property
    def num_classes(self) -> int:
        """Return the number of classes, 0 without classes."""
        return len(self.class_names)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def order(self, seed: int, epoch: int, first: int, count: int) -> Tensor:
        """Return the indices of the items at positions of an epoch, int64 [count].

        Args:
            seed: The seed of the run.
            epoch: The epoch.
            first: The first position.
            count: Number of positions.
        """
        return permutation(seed, epoch, len(self))[first : first + count]

    def next_index(self, index: int) -> int:
        """Return the index of the item that replaces an unreadable one.

        Args:
            index: The index of the unreadable one.
        """
        return (index + 1) % len(self)

    def read_several(self, indices: Sequence[int]) -> list[dict[str, Any] | str]:
        """Return items in order, or for each the reason why it cannot be read.

        The reason is text, because an exception would keep what was decoded so far.

        Args:
            indices: Their indices.
        """
        items: list[dict[str, Any] | str] = []
        for index in indices:
            try:
                items.append(self[index])
            except UnreadablePicture as error:
                items.append(str(error))
        return items

    def reopen(self) -> None:  # noqa: B027 - most have no open files
        """Forget open files; a forked process shares their positions with its parent."""

    def checked_class(self, label: Any, index: int) -> int:
        """Return the class of an item; raise a ValueError unless it is one of num_classes.

        Args:
            label: The class.
            index: The index of the item.
        """
        try:
            number = int(label)
        except (TypeError, ValueError):
            number = -1
        if not 0 <= number < self.num_classes:
            raise ValueError(
                f'the class of {self.name(index)} of {self.source} must be an integer from 0 to '
                f'{self.num_classes - 1} (dataset.num_classes is {self.num_classes}); got {label!r}'
            )
        return number

    def name(self, index: int) -> str:
        """Return the name of an item in messages.

        Args:
            index: Its index.
        """
        return f'picture {index}'

    def item_names(self) -> list[str] | None:
        """Return the names of the items below their folder or archive, or None."""
        return None

    def fingerprint(self) -> str | None:
        """Return a text that changes with the images; None if they may differ between readings."""
        return None


class Images(Dataset):
    """Decoded images uint8 [N, C, H, W], in memory or mapped from a file.

    Args:
        images: The images.
        labels: Their classes, int64 [N].
        class_names: The names of the classes.
        source: The name of the set in messages.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        class_names: Sequence[str] = (),
        source: str = 'the images',
    ) -> None:
        super().__init__((images.shape[1], images.shape[2], images.shape[3]), class_names)
        self.images, self.labels, self.source = images, labels, escape_name(source)
        self.names: list[str] | None = None
        if labels is not None and (
            len(labels) != len(images)
            or not set(labels.unique().tolist()) <= set(range(self.num_classes))
        ):
            raise ValueError(
                f'{source} must have a label from 0 to {self.num_classes - 1} for each of '
                f'{len(images)} images; got {len(labels)} labels'
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item: dict[str, Any] = {'image': self.images[index]}
        return item if self.labels is None else item | {'class_cond': int(self.labels[index])}

    def item_names(self) -> list[str] | None:
        """Return the names of the items, or None."""
        return self.names

    def reframe(self, size: tuple[int, int], channels: int) -> Images:
        """Return the images with another size and number of channels.

        Args:
            size: Height and width.
            channels: Number of channels.
        """
        if self.image_shape == (channels, *size):
            return self
        images = torch.stack(
            [
                picture_bytes(to_pil_image(from_bytes(image)), size, channels)
                for image in self.images
            ]
        )
        return Images(images, self.labels, self.class_names, self.source)
