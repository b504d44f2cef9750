"""Features of many pictures: of samples, over processes; of a reference set, kept by what it
holds.
"""

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
    """Features [n, D] of pictures that every process draws a share of with sample_fn(how many),
    batch by batch, on all processes.

    Rows come in the order (batch, process, place in the batch). Where sample_fn raises
    StopIteration, there are fewer.

    Pictures [B, C, H, W] in [-1, 1] are first rounded to 8 bits, as a file would: a reference set's
    were, and an extractor that sees fine detail tells the two apart. round_pictures=False leaves
    them, for extractors of what is no picture.
    """
    whole_number(n, 'n')
    whole_number(batch_size, 'batch_size')
    share, rows = -(-n // accelerator.num_processes), []
    try:
        for start in range(0, share, batch_size):
            count = min(batch_size, share - start)
            x = as_tensor(sample_fn(count), 'what sample_fn gives')[:count]
            x = (
                round_to_bytes(as_pictures(x, 'what sample_fn gives'))
                if round_pictures and x.ndim == 4
                else x
            )
            rows.append(accelerator.gather(as_tensor(extractor_fn(x), 'what extractor_fn gives')))
    except StopIteration:
        pass
    if not rows:
        raise ValueError(
            'sample_fn drew no pictures; it must give at least one batch before StopIteration'
        )
    return torch.cat(rows)[:n]


def picture_batches(dataset: Any, indices: Sequence[int], batch_size: int) -> Iterator[Tensor]:
    """The pictures uint8 [B, C, H, W] of a data set (items with 'image'), batch by batch."""
    whole_number(batch_size, 'batch_size')
    indices = [int(i) for i in indices]
    for start in range(0, len(indices), batch_size):
        yield torch.stack([_picture(dataset, i) for i in indices[start : start + batch_size]])


def _picture(dataset: Any, index: int) -> Tensor:
    item = dataset[index]
    if not isinstance(item, Mapping) or 'image' not in item:
        raise TypeError(
            f"dataset must hold items with 'image'; got a {type(item).__name__}: K.data.Images "
            'makes one of pictures'
        )
    return as_tensor(item['image'], "dataset's 'image'", torch.uint8)


@torch.no_grad()
def extract(
    extractor: Extractor, pictures: Iterable[Any], device: Any = 'cpu', round_pictures: bool = True
) -> Tensor:
    """Features [N, D] on the CPU of pictures [N, C, H, W], or of batches of them, uint8 or in [-1,
    1].

    Those in [-1, 1] are rounded to 8 bits first, as a file would, so that samples and pictures of a
    data set are treated alike. round_pictures=False takes batches of tensors [B, C, ...] as they
    are.
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
        rows.append(as_features(extractor(x), 'what the extractor gives', least=0).float().cpu())
    if not sum(map(len, rows)):
        raise ValueError('pictures must hold at least one picture; got none')
    return torch.cat(rows)


def _is_one_batch(pictures: Any) -> bool:
    """Tell a list of pictures, [C, H, W] each, from one of batches of them."""
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
    """Features [N, D] of pictures of a data set: computed once, then found in the folder under a
    digest of pictures and extractor.

    (An extractor without a `fingerprint` is asked each time.) round_pictures=False takes items that
    are no pictures as they are.
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
    if (cached := load_cache(path)) is not None:
        return cached[0]['features']
    features = extract(
        extractor, picture_batches(dataset, indices, batch_size), device, round_pictures
    )
    save_cache(path, {'features': features})
    return features
