"""Latents in place of images: encoders checked against the model, and data sets of latents."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data import Dataset, Images, TensorFiles
from ..data.tensor_files import restore
from ..encoders import LatentEncoder, cached_latents
from .load import Sections


class Encoded(Images):
    """Latents in place of images, which are kept for comparison."""

    pictures: Images


def make_encoder(sections: Sections, device: Any = 'cpu') -> LatentEncoder | None:
    """Return the encoder of a config, checked against its model; None for pixels.

    Args:
        sections: The sections of the config.
        device: The device.

    Raises:
        ValueError: If it does not fit the model.
    """
    encoder: LatentEncoder | None = sections.encoder.make(device)
    model = sections.model
    if encoder is not None and encoder.latent_channels != model.input_channels:
        raise ValueError(
            f'model.input_channels must be {encoder.latent_channels}, the channels of the latents '
            'of '
            f'{sections.encoder.location}; got {model.input_channels}. (input_size is that of the '
            f'latents, {encoder.factor} times smaller than the images.)'
        )
    if encoder is not None and model.augment_prob:
        raise ValueError(
            f'model.augment_prob must be 0 for latents, which cannot be rotated and stretched; got '
            f'{model.augment_prob}'
        )
    return encoder


def make_decoder(
    sections: Sections, encoder: LatentEncoder | None
) -> Callable[[Tensor], Tensor] | None:
    """Return the function from samples to images or to the units of the data; None for neither.

    Args:
        sections: The sections of the config.
        encoder: The encoder, or None.
    """
    if encoder is not None:
        return encoder.decode
    mean, std = (getattr(sections.dataset, key, None) for key in ('mean', 'std'))
    return None if mean is None or std is None else partial(restore, mean=mean, std=std)


def gives_pictures(sections: Sections) -> bool:
    """Return True if samples are images in [-1, 1], False if tensors in the units of the data.

    Args:
        sections: The sections of the config.
    """
    model = sections.model
    if not sections.dataset.pictures or len(model.input_size) != 2:
        return False
    return sections.encoder.type != 'pixels' or model.input_channels in (1, 3, 4)


def picture_frame(model: Any, encoder: LatentEncoder | None) -> tuple[tuple[int, ...], int]:
    """Return the size and the channels of the items of a model's data, (h, w) for images.

    Args:
        model: The model section.
        encoder: The encoder, or None.
    """
    if encoder is None:
        return tuple(model.input_size), model.input_channels
    return tuple(side * encoder.factor for side in model.input_size), encoder.input_channels


def encode_dataset(
    dataset: Dataset,
    encoder: LatentEncoder,
    folder: Path,
    device: Any,
    progress: Callable[[int, int], None] | None = None,
) -> Encoded:
    """Return the data set as latents, computed once and stored in `folder`.

    The encoder receives their mean and standard deviation if it has none.

    Args:
        dataset: The data set.
        encoder: The encoder.
        folder: The folder of the cache.
        device: Where to encode.
        progress: Called with the number of encoded images and the total.
    """
    if not isinstance(dataset, Images):
        raise ValueError(
            f'{dataset.source} is too large to be decoded into memory, which latents '
            'of it need; use a smaller one'
        )
    total = dataset.images.long().sum().item()
    fingerprint = f'{dataset.source} {len(dataset)} {dataset.image_shape} {total}'
    latents = cached_latents(
        encoder, dataset, fingerprint, folder, device=device, progress=progress
    )
    result = Encoded(latents, dataset.labels, dataset.class_names, dataset.source)
    result.pictures = dataset
    result.skipped, result.names = dataset.skipped, dataset.names
    return result


def pictures_of(dataset: Dataset) -> Dataset:
    """Return the data to compare samples with: images behind latents, tensors in their units.

    Args:
        dataset: The data set.
    """
    if isinstance(dataset, TensorFiles):
        return dataset.without_scale()
    return dataset.pictures if isinstance(dataset, Encoded) else dataset
