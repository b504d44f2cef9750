"""Make the conditions of samples from requests and classes, and guidance by them."""

from __future__ import annotations

import operator
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config import Experiment
from ..config.conditioning import null_conditions
from ..config.latents import picture_frame
from ..core.images import from_bytes
from ..core.protocols import DenoiseFn
from ..core.registry import nearest
from ..data import UnreadablePicture, load_picture
from ..encoders import LatentEncoder
from ..generation import SamplingConfig, apply_guidance


def requested_conditions(
    experiment: Experiment,
    requests: Sequence[str],
    classes: Sequence[int | str] | None,
    n: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """Return the tensors of the conditions of n samples, including their classes.

    Args:
        experiment: The experiment of the model.
        requests: 'TYPE=VALUE' for each condition; several values of a type are used in turn.
        classes: Numbers or names of classes, used in turn. None: each class in turn.
        n: The number of samples.
        device: The device of encoders of texts and pictures.

    Raises:
        ValueError: A condition is missing, or the model does not have it.
    """
    labels = class_labels(classes, experiment.sections.dataset, n)
    conditions = experiment.conditions(device)
    values: dict[str, list[str]] = {config.type: [] for config, _ in conditions}
    for text in requests:
        kind, _, value = text.partition('=')
        if kind not in values or not value:
            kinds = ', '.join(values) or 'none'
            raise ValueError(
                f'cond must be TYPE=VALUE, where the model has the types {kinds}; got {text!r}'
            )
        values[kind].append(value)
    tensors: dict[str, Tensor] = {}
    load = loader_of(experiment.sections.model, experiment.encoder(device))
    for config, condition in conditions:
        texts = values[config.type]
        if not texts:
            raise ValueError(
                f'cond must hold a value of each condition of the model; give {config.type}=VALUE'
            )
        one = [condition.from_text(value, load) for value in texts]
        for key in one[0]:
            tensors[key] = torch.cat([one[i % len(one)][key] for i in range(n)])
    if labels:
        tensors['class_cond'] = torch.tensor(labels)
    return tensors


def guide(
    denoiser: nn.Module, cond: dict[str, Tensor], sampling: SamplingConfig, device: torch.device
) -> DenoiseFn:
    """Return the denoiser with the guidance of a "sampling" section.

    Args:
        denoiser: The denoiser; it is returned unchanged if `cond` is empty.
        cond: The conditions of the samples by name.
        sampling: The scale and the interval.
        device: The device of the conditions.
    """
    experiment: Any = denoiser.experiment
    null = null_conditions(experiment.sections.dataset.num_classes, experiment.conditions(device))
    return apply_guidance(denoiser, null, sampling) if cond else denoiser


def loader_of(model: Any, encoder: LatentEncoder | None) -> Callable[[str], Tensor]:
    """Return a function from the path of a picture to the diffused tensor [C, H, W].

    Args:
        model: The "model" section.
        encoder: The encoder to latents; None for a model of pixels.
    """

    def load(path: str) -> Tensor:
        (height, width), channels = picture_frame(model, encoder)
        try:
            x = from_bytes(load_picture(path, (height, width), channels))
        except UnreadablePicture as error:
            raise ValueError(
                f'{path} cannot be read as a picture ({error}); give a PNG or JPEG file'
            ) from None
        return x if encoder is None else encoder.encode(x[None].to(encoder.mean.device))[0].cpu()

    return load


def class_labels(classes: Sequence[int | str] | None, dataset: Any, n: int) -> list[int] | None:
    """Return the classes of n images, the requested ones in turn; None without classes.

    Args:
        classes: Numbers, or texts: names in the "dataset" section, else numbers. None: each class
            in turn.
        dataset: The "dataset" section.
        n: The number of images.

    Raises:
        ValueError: The model does not have a class.
    """
    num_classes, names = dataset.num_classes, dataset.class_names or []
    if not num_classes:
        if classes:
            raise ValueError(f'classes must be left out for a model without classes; got {classes}')
        return None
    numbers = [_class_number(name, num_classes, names) for name in classes or range(num_classes)]
    return [numbers[i % len(numbers)] for i in range(n)]


def _class_number(name: int | str, num_classes: int, names: Sequence[str]) -> int:
    normalized_names = [
        unicodedata.normalize('NFC', choices) for choices in names
    ]  # (names of files on a Mac are decomposed)
    if (
        isinstance(name, str)
        and (normalized := unicodedata.normalize('NFC', name)) in normalized_names
    ):
        return normalized_names.index(normalized)
    try:
        number = int(name) if isinstance(name, str) else operator.index(name)
    except (TypeError, ValueError):
        number = -1
    if 0 <= number < num_classes:
        return number
    near = nearest(str(name), names)
    choices = f'0 to {num_classes - 1}' + (
        f', called {", ".join(names[:10])}{", ..." if len(names) > 10 else ""}' if names else ''
    )
    raise ValueError(
        f'classes must name classes of the model, which are {choices}; got {name}'
        + (f': did you mean {near!r}?' if near else '')
    )
