"""Latent diffusion put together: a data set becomes latents, samples become pictures, by the config's "encoder"."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import sections_of
from ..data import Dataset, Images
from ..encoders import LatentEncoder, cached_latents

Decode = Callable[[Tensor], Tensor]


class Encoded(Images):
    """Latents in place of pictures, which are kept for what is compared with them."""

    pictures: Images


def encoder_of(config: Mapping[str, Any], device: Any = 'cpu') -> LatentEncoder | None:
    """The encoder of a config, checked against its model; None where pixels are diffused."""
    sections = sections_of(config)
    encoder: LatentEncoder | None = sections.encoder.make(device)
    model = sections.model
    if encoder is not None and encoder.latent_channels != model.input_channels:
        raise ValueError(f'model.input_channels is {model.input_channels}, and the latents of {sections.encoder.location} have '
                         f'{encoder.latent_channels} channels; set it to {encoder.latent_channels} (input_size is that of the latents, '
                         f'{encoder.factor} times less a side than the pictures)')
    if encoder is not None and model.augment_prob:
        raise ValueError(f'model.augment_prob is {model.augment_prob} and latents cannot be turned and stretched as pictures can; '
                         'set it to 0')
    return encoder


def decoder_of(config: Mapping[str, Any], device: Any = 'cpu') -> Decode | None:
    """What turns samples of a config's model into pictures; None where they are pictures already."""
    encoder = encoder_of(config, device)
    return None if encoder is None else encoder.decode


def picture_frame(model: Any, encoder: LatentEncoder | None) -> tuple[tuple[int, int], int]:
    """The size (h, w) and channels of the pictures that a model's data are made of."""
    h, w = model.input_size
    return ((h, w), model.input_channels) if encoder is None else ((h * encoder.factor, w * encoder.factor), encoder.input_channels)


def encoded(dataset: Dataset, encoder: LatentEncoder, config: dict[str, Any], folder: Path, device: Any,
            progress: Callable[[int, int], None] | None = None) -> Encoded:
    """The data set as latents, computed once and kept in `folder`; their statistics are written into the config."""
    if not isinstance(dataset, Images):
        raise ValueError(f'{dataset.source} is too large to be decoded into memory, which latents of it need; take a smaller one')
    fingerprint = f'{dataset.source} {len(dataset)} {dataset.image_shape} {dataset.images.long().sum().item()}'
    latents = cached_latents(encoder, dataset, fingerprint, folder, device=device, progress=progress)
    config['encoder'].update(mean=encoder.mean.flatten().tolist(), std=encoder.std.flatten().tolist())
    result = Encoded(latents, dataset.labels, dataset.class_names, dataset.source)
    result.pictures = dataset
    result.skipped, result.names = dataset.skipped, dataset.names
    return result


def pictures_of(dataset: Dataset) -> Dataset:
    """The pictures behind a data set that may hold latents."""
    return dataset.pictures if isinstance(dataset, Encoded) else dataset
