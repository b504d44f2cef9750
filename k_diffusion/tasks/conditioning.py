"""The conditions of a config put together with its model, for training, demo grids and sampling."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..config.conditioning import Conditions, conditions_of, null_conditions
from ..config.latents import picture_frame
from ..core.images import from_bytes
from ..data import Dataset, UnreadablePicture, load_picture
from ..encoders import LatentEncoder

__all__ = ['conditions_of', 'first_of', 'loader_of', 'null_conditions', 'requested_conditions']


def first_of(conditions: Conditions, dataset: Dataset, n: int, seed: int) -> dict[str, Tensor]:
    """Return the conditions of the first n pictures of the data, for demo grids."""
    if not conditions:
        return {}
    index = torch.arange(n) % len(dataset)
    images = torch.stack([dataset[i]['image'] for i in index.tolist()])
    batch = {'image': from_bytes(images) if images.dtype == torch.uint8 else images, 'index': index, 'item': torch.arange(n)}
    told: dict[str, Tensor] = {}
    for _, condition in conditions:
        told.update(condition.prepare(batch, seed))
    return told


def requested_conditions(conditions: Conditions, requests: Sequence[str], n: int, model: Any,
                         encoder: LatentEncoder | None) -> dict[str, Tensor]:
    """Return the tensors of the conditions of n samples.

    Args:
        conditions: The conditions of the model.
        requests: 'TYPE=VALUE' for each condition; several values of a type are taken in turn.
        n: How many samples.
        model: The "model" section, for the size of pictures.
        encoder: The encoder that pictures pass through; None where pixels are diffused.

    Raises:
        ValueError: A condition is missing, or the model does not have it.
    """
    values: dict[str, list[str]] = {config.type: [] for config, _ in conditions}
    for text in requests:
        kind, _, value = text.partition('=')
        if kind not in values or not value:
            known = ', '.join(values) or 'none'
            raise ValueError(f'cond must be TYPE=VALUE, where the model has the types {known}; got {text!r}')
        values[kind].append(value)
    tensors: dict[str, Tensor] = {}
    load = loader_of(model, encoder)
    for config, condition in conditions:
        given = values[config.type]
        if not given:
            raise ValueError(f'cond must hold a value of each condition of the model; give {config.type}=VALUE')
        one = [condition.asked(value, load) for value in given]
        for key in one[0]:
            tensors[key] = torch.cat([one[i % len(one)][key] for i in range(n)])
    return tensors


def loader_of(model: Any, encoder: LatentEncoder | None) -> Callable[[str], Tensor]:
    """A function from a picture file to what is diffused, [C, H, W]."""
    def load(path: str) -> Tensor:
        size, channels = picture_frame(model, encoder)
        try:
            x = from_bytes(load_picture(path, size, channels))
        except UnreadablePicture as error:
            raise ValueError(f'{path} cannot be read as a picture ({error}); give a PNG or JPEG file') from None
        return x if encoder is None else encoder.encode(x[None].to(encoder.mean.device))[0].cpu()
    return load
