"""The conditions of a config put together with its model, for training, demo grids and sampling."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..config.load import Sections
from ..core.images import from_bytes
from ..data import Dataset, Images, UnreadablePicture, load_picture
from ..encoders import Condition, ConditionConfig, LatentEncoder
from .encoding import picture_frame

Conditions = list[tuple[ConditionConfig, Condition]]
_KEYS = ('mapping_cond', 'cross_cond', 'unet_cond')


def conditions_of(sections: Sections, dataset: Dataset | None = None, device: Any = 'cpu') -> Conditions:
    """The conditions of a config, checked against its model; with the data set, they can prepare batches of it."""
    if dataset is not None and sections.conditions and not isinstance(dataset, Images):
        raise ValueError(f'{dataset.source} is too large to be decoded into memory, which conditions need; take a smaller one')
    made = [(config, config.make(sections.model.input_channels, dataset, device)) for config in sections.conditions]
    for key in _KEYS:
        given = [(config.type, condition.width) for config, condition in made if condition.key == key]
        if len(given) > 1:
            raise ValueError(f'conditions: {given[0][0]} and {given[1][0]} both go into {key}; a model takes one there')
        wanted, width = getattr(sections.model, f'{key}_dim', 0), given[0][1] if given else 0
        if wanted != width:
            told = f'the condition {given[0][0]!r} is {width} wide' if given else 'no condition goes there'
            fix = f'set it to {width}' if not given or hasattr(sections.model, f'{key}_dim') else 'take a model that has it, image_v1'
            raise ValueError(f'model.{key}_dim is {wanted}, and {told}; {fix}')
    return made


def null_conditions(num_classes: int, conditions: Conditions) -> dict[str, float | int]:
    """Return the values that stand for no condition, by name, for classifier-free guidance."""
    keys = {condition.key: 0. for _, condition in conditions}
    padding = {'cross_cond_padding': 0.} if any(config.type == 'text' and c.key == 'cross_cond' for config, c in conditions) else {}
    return ({'class_cond': num_classes} if num_classes else {}) | keys | padding


def first_of(conditions: Conditions, dataset: Dataset, n: int, seed: int) -> dict[str, Tensor]:
    """What the model is told of the first n pictures of the data, for demo grids."""
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
