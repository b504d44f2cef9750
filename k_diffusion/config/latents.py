"""Latents in place of pictures: the encoder of a config, checked against its model, and data
sets of latents.
"""

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
    """Latents in place of pictures, which are kept for what is compared with them."""

    pictures: Images


def make_encoder(sections: Sections, device: Any = 'cpu') -> LatentEncoder | None:
    """Return the encoder of a config, checked against its model; None where pixels are diffused."""
    encoder: LatentEncoder | None = sections.encoder.make(device)
    model = sections.model
    if encoder is not None and encoder.latent_channels != model.input_channels:
        raise ValueError(
            f'model.input_channels is {model.input_channels}, and the latents of '
            f'{sections.encoder.location} have {encoder.latent_channels} channels; set it to '
            f'{encoder.latent_channels} (input_size is that of the latents, {encoder.factor} times '
            'less a side than the pictures)'
        )
    if encoder is not None and model.augment_prob:
        raise ValueError(
            f'model.augment_prob is {model.augment_prob} and latents cannot be turned '
            'and stretched as pictures can; set it to 0'
        )
    return encoder


def make_decoder(
    sections: Sections, encoder: LatentEncoder | None
) -> Callable[[Tensor], Tensor] | None:
    """Return what turns samples into pictures, or into the units of the data; None where they
    are that already.
    """
    if encoder is not None:
        return encoder.decode
    mean, std = (getattr(sections.dataset, key, None) for key in ('mean', 'std'))
    return None if mean is None or std is None else partial(restore, mean=mean, std=std)


def gives_pictures(sections: Sections) -> bool:
    """Return whether samples are pictures in [-1, 1]; else they are tensors, in the units of the
    data.
    """
    model = sections.model
    if not sections.dataset.pictures or len(model.input_size) != 2:
        return False
    return sections.encoder.type != 'pixels' or model.input_channels in (1, 3, 4)


def picture_frame(model: Any, encoder: LatentEncoder | None) -> tuple[tuple[int, ...], int]:
    """Return the size and channels of the items that a model's data are made of, (h, w) of
    pictures.
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
    """Return the data set as latents, computed once and kept in `folder`.

    The encoder takes their mean and standard deviation where it has none.
    """
    if not isinstance(dataset, Images):
        raise ValueError(
            f'{dataset.source} is too large to be decoded into memory, which latents '
            'of it need; take a smaller one'
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
    """Return what samples are compared with: the pictures behind latents, tensors in the units
    of their files.
    """
    if isinstance(dataset, TensorFiles):
        return dataset.unscaled()
    return dataset.pictures if isinstance(dataset, Encoded) else dataset
