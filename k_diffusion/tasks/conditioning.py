"""The conditions of samples: what is asked for, classes in turn, and guidance by them."""

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
    """Return the tensors of the conditions of n samples, their classes among them.

    Args:
        experiment: That of the model.
        requests: 'TYPE=VALUE' for each condition; several values of a type are taken in turn.
        classes: Numbers or names of classes, taken in turn. None: each class in turn.
        n: How many samples.
        device: Where texts and pictures are encoded.

    Raises:
        ValueError: A condition is missing, or the model does not have it.
    """
    labels = class_labels(classes, experiment.sections.dataset, n)
    conditions = experiment.conditions(device)
    values: dict[str, list[str]] = {config.type: [] for config, _ in conditions}
    for text in requests:
        kind, _, value = text.partition('=')
        if kind not in values or not value:
            known = ', '.join(values) or 'none'
            raise ValueError(
                f'cond must be TYPE=VALUE, where the model has the types {known}; got {text!r}'
            )
        values[kind].append(value)
    tensors: dict[str, Tensor] = {}
    load = loader_of(experiment.sections.model, experiment.encoder(device))
    for config, condition in conditions:
        given = values[config.type]
        if not given:
            raise ValueError(
                f'cond must hold a value of each condition of the model; give {config.type}=VALUE'
            )
        one = [condition.asked(value, load) for value in given]
        for key in one[0]:
            tensors[key] = torch.cat([one[i % len(one)][key] for i in range(n)])
    if labels:
        tensors['class_cond'] = torch.tensor(labels)
    return tensors


def guide(
    denoiser: nn.Module, cond: dict[str, Tensor], sampling: SamplingConfig, device: torch.device
) -> DenoiseFn:
    """Return the denoiser with the guidance of a "sampling" section; as it is where the model
    has no conditions.
    """
    experiment: Any = denoiser.experiment
    null = null_conditions(experiment.sections.dataset.num_classes, experiment.conditions(device))
    return apply_guidance(denoiser, null, sampling) if cond else denoiser


def loader_of(model: Any, encoder: LatentEncoder | None) -> Callable[[str], Tensor]:
    """A function from a picture file to what is diffused, [C, H, W]."""

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
    """Return the classes of n images, those asked for in turn; None for a model without classes.

    Args:
        classes: Numbers, or texts: names that the "dataset" section knows, else numbers. None: each
            class in turn.
        dataset: The "dataset" section.
        n: How many images.

    Raises:
        ValueError: The model does not know a class.
    """
    num_classes, names = dataset.num_classes, dataset.class_names or []
    if not num_classes:
        if classes:
            raise ValueError(f'classes must be left out for a model without classes; got {classes}')
        return None
    chosen = [_class_number(name, num_classes, names) for name in classes or range(num_classes)]
    return [chosen[i % len(chosen)] for i in range(n)]


def _class_number(name: int | str, num_classes: int, names: Sequence[str]) -> int:
    known_names = [
        unicodedata.normalize('NFC', known) for known in names
    ]  # (names of files on a Mac are decomposed)
    if isinstance(name, str) and (wanted := unicodedata.normalize('NFC', name)) in known_names:
        return known_names.index(wanted)
    try:
        number = int(name) if isinstance(name, str) else operator.index(name)
    except (TypeError, ValueError):
        number = -1
    if 0 <= number < num_classes:
        return number
    near = nearest(str(name), names)
    known = f'0 to {num_classes - 1}' + (
        f', called {", ".join(names[:10])}{", ..." if len(names) > 10 else ""}' if names else ''
    )
    raise ValueError(
        f'classes must name classes of the model, which are {known}; got {name}'
        + (f': did you mean {near!r}?' if near else '')
    )
