"""Features of many pictures: of samples, over processes; of a reference set, kept by what it holds."""
from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.images import from_bytes, raw_bytes
from ..core.weights import load_safetensors, save_safetensors
from .features import Extractor


def compute_features(accelerator: Any, sample_fn: Callable[[int], Tensor], extractor_fn: Callable[[Tensor], Tensor], n: int,
                     batch_size: int) -> Tensor:
    """Features [n, D] of pictures that every process draws a share of with sample_fn(how many), batch by batch, on all processes.

    Rows come in the order (batch, process, place in the batch). Where sample_fn raises StopIteration, there are fewer.
    """
    if n < 1 or batch_size < 1:
        raise ValueError(f'n is {n} and batch_size {batch_size}; both must be at least 1')
    share, rows = -(-n // accelerator.num_processes), []
    try:
        for start in range(0, share, batch_size):
            count = min(batch_size, share - start)
            rows.append(accelerator.gather(extractor_fn(sample_fn(count)[:count])))
    except StopIteration:
        pass
    if not rows:
        raise ValueError('sample_fn drew no pictures; it must give at least one batch before StopIteration')
    return torch.cat(rows)[:n]


def picture_batches(dataset: Any, indices: Sequence[int], batch_size: int) -> Iterator[Tensor]:
    """The pictures uint8 [B, C, H, W] of a data set (items with 'image'), batch by batch."""
    for start in range(0, len(indices), batch_size):
        yield torch.stack([dataset[i]['image'] for i in indices[start:start + batch_size]])


@torch.no_grad()
def extract(extractor: Extractor, pictures: Iterator[Tensor], device: Any = 'cpu') -> Tensor:
    """Features [N, D] on the CPU of batches of pictures, uint8 or in [-1, 1]."""
    rows = []
    for batch in pictures:
        x = from_bytes(batch.to(device)) if batch.dtype == torch.uint8 else batch.to(device)
        rows.append(extractor(x).float().cpu())
    return torch.cat(rows)


def reference_features(dataset: Any, indices: Sequence[int], extractor: Extractor, folder: str | os.PathLike[str] | None = None,
                       batch_size: int = 64, device: Any = 'cpu') -> Tensor:
    """Features [N, D] of pictures of a data set: computed once, then found in the folder under a digest of pictures and extractor.

    (An extractor without a `fingerprint` is asked each time.)
    """
    told = getattr(extractor, 'fingerprint', '')
    if folder is None or not told:
        return extract(extractor, picture_batches(dataset, indices, batch_size), device)
    state = hashlib.blake2b(told.encode(), digest_size=16)
    for batch in picture_batches(dataset, indices, batch_size):
        for picture in batch:
            state.update(f'{tuple(picture.shape)}'.encode())
            state.update(raw_bytes(picture))
    path = Path(folder) / f'features-{state.hexdigest()}.safetensors'
    if path.is_file():
        return load_safetensors(path)['features']
    features = extract(extractor, picture_batches(dataset, indices, batch_size), device)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_safetensors(path, {'features': features})
    return features
