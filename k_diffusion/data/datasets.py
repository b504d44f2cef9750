"""What a data set is: pictures of one size by number, each with its class where there are
classes.
"""

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
from .pictures import picture_bytes


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, n: int) -> Tensor:
    """The order in which an epoch takes its n pictures, int64 [n] (kept: do not change it)."""
    return torch.randperm(n, generator=generator(seed, 'epoch', epoch))


class Dataset(ABC):
    """Pictures of one size, each with its class where the set has classes.

    ds[i] -> dict(image uint8 [C, H, W], class_cond int, text str), without what the set does not
    have. A picture that cannot be read raises UnreadablePicture. `skipped` lists those found so
    far: (name, reason); `notes` are sentences for who opened the set. Names are escaped wherever
    they are given.
    """

    #: What the set is called in messages.
    source: str
    #: Whether items are read when they are asked for and never all of them, since they may be many
    #: or far away.
    streams = False
    #: Whether items have texts.
    has_texts = False

    def __init__(self, image_shape: tuple[int, ...], class_names: Sequence[str] = ()) -> None:
        self.image_shape = image_shape
        self.class_names = [escape_name(name) for name in class_names]
        self.skipped: list[tuple[str, str]] = []
        self.notes: list[str] = []

    @property
    def num_classes(self) -> int:
        """How many classes there are, 0 where the pictures have none."""
        return len(self.class_names)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def order(self, seed: int, epoch: int, first: int, count: int) -> Tensor:
        """Return which items stand at `count` positions of an epoch from `first` on, int64
        [count].
        """
        return permutation(seed, epoch, len(self))[first : first + count]

    def next_index(self, index: int) -> int:
        """Return the item that is taken in place of one that cannot be read."""
        return (index + 1) % len(self)

    def reopen(self) -> None:  # noqa: B027 - most have no open files
        """Forget the files that are open; a process that was forked shares their positions with
        its parent.
        """

    def checked_class(self, label: Any, index: int) -> int:
        """The class of an item, which must be a whole number below num_classes."""
        try:
            found = int(label)
        except (TypeError, ValueError):
            found = -1
        if not 0 <= found < self.num_classes:
            raise ValueError(
                f'the class of {self.name(index)} of {self.source} is {label!r}; it must be a '
                'whole number from 0 to '
                f'{self.num_classes - 1} (dataset.num_classes is {self.num_classes})'
            )
        return found

    def name(self, index: int) -> str:
        """What a picture is called in lists of skipped ones."""
        return f'picture {index}'

    def item_names(self) -> list[str] | None:
        """The names of the pictures below their folder or archive, as the files have them; None
        where they have no names.
        """
        return None

    def fingerprint(self) -> str | None:
        """A text that changes when the pictures do, or None where they may differ from one
        reading to the next.
        """
        return None


class Images(Dataset):
    """Pictures already decoded: images uint8 [N, C, H, W] in memory or mapped from a file,
    labels int64 [N].
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
                f'{source} has {len(images)} images and {len(labels)} labels; '
                f'there must be one for each, from 0 to {self.num_classes - 1}'
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item: dict[str, Any] = {'image': self.images[index]}
        return item if self.labels is None else item | {'class_cond': int(self.labels[index])}

    def item_names(self) -> list[str] | None:
        return self.names

    def framed(self, size: tuple[int, int], channels: int) -> Images:
        """The same pictures with another size and number of channels."""
        if self.image_shape == (channels, *size):
            return self
        images = torch.stack(
            [
                picture_bytes(to_pil_image(from_bytes(image)), size, channels)
                for image in self.images
            ]
        )
        return Images(images, self.labels, self.class_names, self.source)
