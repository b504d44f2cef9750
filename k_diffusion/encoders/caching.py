"""Latents of a data set, computed once and kept on disk with their statistics."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..core.images import from_bytes
from ..core.tensor_cache import load_cache, save_cache
from ..core.weights import load_safetensors_config
from .latents import LatentEncoder

Progress = Callable[[int, int], None]


class Pictures(Protocol):
    """Items by index, each with its `image`, uint8 [C, H, W]."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


@torch.no_grad()
def cached_latents(
    encoder: LatentEncoder,
    pictures: Pictures,
    fingerprint: str,
    folder: str | os.PathLike[str],
    batch_size: int = 64,
    device: Any = 'cpu',
    progress: Progress | None = None,
) -> Tensor:
    """Return the latents [N, c, h, w] of images, with mean 0 and standard deviation 1 per channel.

    They are computed once and stored in `folder`, in a file named after the weights of the encoder
    and `fingerprint`. The encoder receives their statistics, unless it has some already (as in a
    resumed run).

    Args:
        encoder: The encoder.
        pictures: Items with `image`, uint8 [C, H, W].
        fingerprint: A text that identifies the set of images.
        folder: The folder of the cache.
        batch_size: Number of images encoded at once.
        device: The device of the encoder.
        progress: Called with the number of encoded images and the total.
    """
    path = Path(folder) / f'latents-{_key(encoder, fingerprint)}.safetensors'
    entry = load_cache(path)
    if entry is not None:
        raw = entry[0]['latents']
    else:
        raw = _encode_all(encoder, pictures, batch_size, device, progress)
        source = getattr(pictures, 'source', None)
        owner = (
            None
            if source is None
            else _key(encoder, f'{source} {getattr(pictures, "image_shape", "")}')
        )
        save_cache(path, {'latents': raw}, {'latents of': fingerprint, 'owner': owner})
        if owner is not None:
            _remove_older(path, owner)
    if bool((encoder.mean == 0).all() and (encoder.std == 1).all()):
        encoder.set_statistics(*statistics(raw))
    return (raw - encoder.mean.cpu()) / encoder.std.cpu()


def _remove_older(path: Path, owner: str) -> None:
    """Remove cached latents of earlier versions of the same images with the same encoder."""
    for other in path.parent.glob('latents-*.safetensors'):
        with contextlib.suppress(ValueError, OSError):
            if other != path and load_safetensors_config(other).get('owner') == owner:
                other.unlink()


def statistics(latents: Tensor) -> tuple[list[float], list[float]]:
    """Return the mean and the standard deviation of each channel over all latents.

    Args:
        latents: [N, c, ...].
    """
    flat = latents.double().transpose(0, 1).flatten(1)
    return flat.mean(1).tolist(), flat.std(1).clamp(min=1e-6).tolist()


def _encode_all(
    encoder: LatentEncoder,
    pictures: Pictures,
    batch_size: int,
    device: Any,
    progress: Progress | None,
) -> Tensor:
    """Encode all images and return their latents on the CPU."""
    out = []
    for start in range(0, len(pictures), batch_size):
        part = torch.stack(
            [pictures[i]['image'] for i in range(start, min(start + batch_size, len(pictures)))]
        )
        out.append(encoder.network.encode(from_bytes(part.to(device)))[0].float().cpu())
        if progress is not None:
            progress(min(start + batch_size, len(pictures)), len(pictures))
    return torch.cat(out)


def _key(encoder: LatentEncoder, fingerprint: str) -> str:
    """Return a digest of the fingerprint and the weights of the encoder."""
    state = hashlib.blake2b(fingerprint.encode(), digest_size=12)
    for name, value in sorted(encoder.network.state_dict().items()):
        state.update(
            (
                f'{name} {list(value.shape)} {value.double().sum().item()!r} '
                f'{value.double().abs().sum().item()!r}'
            ).encode()
        )
    return state.hexdigest()
