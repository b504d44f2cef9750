"""Features of many images: of samples over processes, and of a cached reference set."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.images import raw_bytes, round_to_bytes
from ..core.tensor_cache import load_cache, save_cache
from .arrays import as_features, as_floats, as_pictures, as_tensor, whole_number
from .features import Extractor


def compute_features(
    accelerator: Any,
    sample_fn: Callable[[int], Any],
    extractor_fn: Callable[[Tensor], Any],
    n: int,
    batch_size: int,
    round_pictures: bool = True,
) -> Tensor:
    """Compute features [n, D] of images that every process draws a share of, on all processes.

    Rows are in the order (batch, process, index in the batch). There are fewer if sample_fn raises
    StopIteration.

    Args:
        accelerator: The accelerator.
        sample_fn: Draws a number of images.
        extractor_fn: Computes their features.
        n: Number of images.
        batch_size: Number of images in a batch of a process.
        round_pictures: Round images [B, C, H, W] in [-1, 1] to 8 bits, like the reference set,
            because an extractor can detect the difference. False for extractors of other data.

    Raises:
        ValueError: If sample_fn draws nothing.
    """
    whole_number(n, 'n')
    whole_number(batch_size, 'batch_size')
    share, rows = -(-n // accelerator.num_processes), []
    try:
        for start in range(0, share, batch_size):
            count = min(batch_size, share - start)
            x = as_tensor(sample_fn(count), 'the result of sample_fn')[:count]
            x = (
                round_to_bytes(as_pictures(x, 'the result of sample_fn'))
                if round_pictures and x.ndim == 4
                else x
            )
            rows.append(
                accelerator.gather(as_tensor(extractor_fn(x), 'the result of extractor_fn'))
            )
    except StopIteration:
        pass
    if not rows:
        raise ValueError(
            'sample_fn must return at least one batch before StopIteration; it drew no images'
        )
    return torch.cat(rows)[:n]


def picture_batches(dataset: Any, indices: Sequence[int], batch_size: int) -> Iterator[Tensor]:
    """Yield the images uint8 [B, C, H, W] of a data set (items with 'image'), batch by batch.

    Args:
        dataset: The data set.
        indices: The indices of the items.
        batch_size: Number of images in a batch.
    """
    whole_number(batch_size, 'batch_size')
    indices = [int(i) for i in indices]
    for start in range(0, len(indices), batch_size):
        yield torch.stack([_picture(dataset, i) for i in indices[start : start + batch_size]])


def _picture(dataset: Any, index: int) -> Tensor:
    item = dataset[index]
    if not isinstance(item, Mapping) or 'image' not in item:
        raise TypeError(
            f"dataset must hold items with 'image'; got {type(item).__name__}. K.data.Images "
            'makes a data set of images'
        )
    return as_tensor(item['image'], "dataset's 'image'", torch.uint8)


@torch.no_grad()
def extract(
    extractor: Extractor, pictures: Iterable[Any], device: Any = 'cpu', round_pictures: bool = True
) -> Tensor:
    """Compute features [N, D] on the CPU of images, or of batches of them.

    Args:
        extractor: The feature extractor.
        pictures: Images [N, C, H, W], uint8 or in [-1, 1], or an iterable of batches.
        device: Where to compute.
        round_pictures: Round images in [-1, 1] to 8 bits, as a file does, so that samples and data
            are treated alike. False takes batches of tensors [B, C, ...] unchanged.

    Raises:
        ValueError: If there are none.
    """
    if round_pictures and (hasattr(pictures, '__array__') or _is_one_batch(pictures)):
        pictures = as_pictures(pictures, 'pictures').split(64)
    rows = []
    for batch in pictures:
        x = (
            round_to_bytes(as_pictures(batch, 'pictures').to(device))
            if round_pictures
            else as_floats(batch, 'pictures').to(device)
        )
        rows.append(as_features(extractor(x), 'the result of the extractor', least=0).float().cpu())
    if not sum(map(len, rows)):
        raise ValueError('pictures must hold at least one image; got none')
    return torch.cat(rows)


def _is_one_batch(pictures: Any) -> bool:
    """Return True for a list of images [C, H, W], False for one of batches."""
    return (
        isinstance(pictures, (list, tuple))
        and len(pictures) > 0
        and as_tensor(pictures[0], 'pictures').ndim == 3
    )


def reference_features(
    dataset: Any,
    indices: Sequence[int],
    extractor: Extractor,
    folder: str | os.PathLike[str] | None = None,
    batch_size: int = 64,
    device: Any = 'cpu',
    round_pictures: bool = True,
) -> Tensor:
    """Compute features [N, D] of images of a data set, or load them from the cache.

    The cache is a folder with a digest of images and extractor in the file names. An extractor
    without a `fingerprint` is called each time.

    Args:
        dataset: The data set.
        indices: The indices of the items.
        extractor: The feature extractor.
        folder: The folder of the cache, or None.
        batch_size: Number of images in a batch.
        device: Where to compute.
        round_pictures: As in `extract`.
    """
    identity = getattr(extractor, 'fingerprint', '')
    if folder is None or not identity:
        return extract(
            extractor, picture_batches(dataset, indices, batch_size), device, round_pictures
        )
    state = hashlib.blake2b(identity.encode(), digest_size=16)
    for batch in picture_batches(dataset, indices, batch_size):
        for picture in batch:
            state.update(f'{tuple(picture.shape)}'.encode())
            state.update(raw_bytes(picture.contiguous().view(torch.uint8)))
    path = Path(folder) / f'features-{state.hexdigest()}.safetensors'
    if (entry := load_cache(path)) is not None:
        return entry[0]['features']
    features = extract(
        extractor, picture_batches(dataset, indices, batch_size), device, round_pictures
    )
    save_cache(path, {'features': features})
    return features
