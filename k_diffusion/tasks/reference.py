"""Open the reference data set of samples and the extractor of features."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import Experiment
from ..config.latents import picture_frame, pictures_of
from ..config.load import Sections, read_dataset_section
from ..core.files import digest_of, read_json
from ..core.images import to_bytes
from ..core.registry import unknown
from ..data import (
    DATASETS,
    Dataset,
    DatasetConfig,
    Images,
    StreamData,
    TensorsConfig,
    as_dataset,
    open_dataset,
    readable_index,
)
from ..evaluation import (
    CLIPFeatureExtractor,
    DINOv2FeatureExtractor,
    Extractor,
    InceptionV3FeatureExtractor,
    ScriptFeatureExtractor,
    TensorFeatureExtractor,
    cached_classifier,
)
from ..evaluation.features import INCEPTION_DIGEST

EXTRACTORS = ('inception', 'clip', 'dinov2', 'classifier', 'tensor')
LEARNT_FROM = 20_000  # pictures at most, for the classifier

#: For help pages.
DATASET_WORDS = (
    'a folder of pictures, TYPE:LOCATION (mnist:data/mnist, or mnist/test:data/mnist for its test '
    'pictures), or a .json file with a "dataset" section'
)
EXTRACTOR_WORDS = (
    'inception, clip or clip:NAME, dinov2 or dinov2:NAME (a NAME may be a folder), classifier '
    '(trained in seconds on the '
    "config's labelled data set), tensor (levels and spectrum, for sequences, fields and "
    'volumes), or a TorchScript file, '
    'which can run code of its own and is refused '
    'unless code is allowed'
)


def open_reference(
    experiment: Experiment,
    which: Any = None,
    allow_code: bool = False,
    base: Path | None = None,
    device: Any = 'cpu',
) -> Dataset:
    """Open the data set of a config, or another one, as items that the model can draw.

    Pictures have the size and channels of the model; tensors are in the units of their files.

    Args:
        experiment: The experiment of the model.
        which: A text as in DATASET_WORDS; or a tensor [N, C, H, W] or a torch data set, as in
            training.
        allow_code: Allow a "custom" data set to run its Python file.
        base: The folder that the files of the config are relative to.
        device: The device of the encoder of the experiment, which determines the size of pictures.
    """
    section, model = experiment.sections.dataset, experiment.sections.model
    if which is not None and not isinstance(which, (str, os.PathLike)):
        return _open_python_data(which, section.num_classes, experiment, device)
    if which is not None:
        section = read_dataset_section(
            _section(str(which), section.num_classes, section.type == 'tensors')
        )
    return pictures_of(
        open_dataset(section, *picture_frame(model, experiment.encoder(device)), base, allow_code)
    )


def _open_python_data(data: Any, num_classes: int, experiment: Experiment, device: Any) -> Dataset:
    """Return pictures from Python as bytes with their classes; other tensors unchanged."""
    dataset = as_dataset(data)
    if isinstance(dataset, StreamData):
        raise ValueError(
            'dataset must be a tensor or a map-style data set to compare with; got an iterable one'
        )
    size, channels = picture_frame(experiment.sections.model, experiment.encoder(device))
    if tuple(dataset.image_shape) != (channels, *size):
        raise ValueError(
            f'dataset must hold pictures {[channels, *size]}, as the model draws them; got '
            f'{list(dataset.image_shape)}'
        )
    if not experiment.gives_pictures:
        return dataset
    items = [dataset[i] for i in range(len(dataset))]
    images = torch.stack([item['image'] for item in items])
    labels = None
    if num_classes and 'class_cond' in items[0]:
        labels = torch.tensor([int(item['class_cond']) for item in items])
    names = [str(i) for i in range(num_classes if labels is not None else 0)]
    return Images(
        images if images.dtype == torch.uint8 else to_bytes(images), labels, names, dataset.source
    )


def _section(which: str, num_classes: int, tensors: bool = False) -> dict[str, Any]:
    if Path(which).suffix == '.json' and Path(which).is_file():
        content = read_json(Path(which).read_text(), which)
        if not isinstance(content, dict) or not isinstance(content.get('dataset'), dict):
            raise ValueError(
                f'{which} has no section "dataset"; give a config, or a file with that section '
                'alone'
            )
        return content['dataset']
    if Path(which).is_dir():
        return {
            'type': 'tensors' if tensors else 'imagefolder',
            'location': which,
            'num_classes': 0,
        }
    names, _, location = which.partition(':')
    kind, _, split = names.partition('/')
    if kind in DATASETS and split and 'split' not in DATASETS[kind].__dataclass_fields__:
        raise ValueError(
            f'dataset must be given without /{split}: the type {kind!r} has no splits; got '
            f'{which!r}'
        )
    if kind not in DATASETS:
        raise ValueError(
            f'dataset must be a folder, a .json file or TYPE:LOCATION; got {which!r}: '
            f'{unknown("type", kind, DATASETS)}'
        )
    place = {'location': location, 'split': split}
    return {
        'type': kind,
        'num_classes': num_classes,
        **{key: value for key, value in place.items() if value},
    }


def read_held_out_section(which: str, sections: Sections) -> DatasetConfig:
    """Return the section of a held-out data set.

    Args:
        which: TYPE:LOCATION, a .json file with a "dataset" section, or another location of the type
            in the config, for example a folder.
        sections: The sections of the config, whose classes and scaling of tensors it inherits.
    """
    own = sections.dataset
    has_type = which.partition(':')[0].partition('/')[0] in DATASETS
    if not has_type and Path(which).suffix != '.json' and hasattr(own, 'location'):
        return dataclasses.replace(own, location=which, class_names=None)
    section: DatasetConfig = read_dataset_section(
        _section(which, own.num_classes, own.type == 'tensors')
    )
    if isinstance(section, TensorsConfig):
        mean, std = (getattr(own, key, None) for key in ('mean', 'std'))
        section = dataclasses.replace(section, mean=mean, std=std)
    return section


def choose_pictures(dataset: Dataset, most: int, seed: int = 0) -> list[int]:
    """Return the indices of the pictures that represent a data set.

    Args:
        dataset: The data set.
        most: The maximum number; a larger data set is sampled.
        seed: The seed of that sample.
    """
    indices = dataset.order(seed, 0, 0, min(most, len(dataset))).tolist()
    return [readable_index(dataset, index) for index in indices] if dataset.streams else indices


def classes_of(dataset: Dataset, indices: list[int]) -> list[int] | None:
    """Return the classes of the items of `dataset` at `indices`, or None if it has no classes."""
    if not dataset.num_classes:
        return None
    labels = getattr(dataset, 'labels', None)
    return [int(dataset[i]['class_cond'] if labels is None else labels[i]) for i in indices]


def make_extractor(
    which: str,
    training_set: Callable[[], Dataset],
    folder: str | os.PathLike[str],
    device: Any = 'cpu',
    say: Callable[[str], None] = lambda text: None,
    allow_code: bool = False,
) -> Extractor:
    """Return the feature extractor that a text names.

    Args:
        which: A text as in EXTRACTOR_WORDS.
        training_set: Opens the labelled data set of a classifier.
        folder: The cache folder of a classifier.
        device: The device of the extractor.
        say: Report a line of text.
        allow_code: Allow a TorchScript file other than NVIDIA's Inception.

    Raises:
        ValueError: The name is unknown, or the file is not allowed.
    """
    kind, _, name = which.partition(':')
    if Path(which).suffix in ('.pt', '.pth', '.ts') or Path(which).is_file():
        is_inception = Path(which).is_file() and digest_of(which) == INCEPTION_DIGEST
        return (
            InceptionV3FeatureExtractor(device, which)
            if is_inception
            else ScriptFeatureExtractor(which, device, allow_code)
        )
    if kind not in EXTRACTORS:
        raise ValueError(
            f'{unknown("extractor", kind, EXTRACTORS)}, or the path of a TorchScript file'
        )
    if kind == 'inception':
        return InceptionV3FeatureExtractor(device)
    if kind == 'clip':
        return CLIPFeatureExtractor(name or 'ViT-B/16', device)
    if kind == 'dinov2':
        return DINOv2FeatureExtractor(name or 'vitl14', device)
    if kind == 'tensor':
        return TensorFeatureExtractor()
    images, labels, classes = labelled_pictures(training_set())
    network = cached_classifier(folder, images, labels, classes)
    say(
        f'features are from a classifier of {classes} classes with an accuracy of '
        f'{network.accuracy:.1%} on held-out pictures'
    )
    return network.to(device)


def labelled_pictures(dataset: Dataset) -> tuple[Tensor, Tensor, int]:
    """Return pictures of a data set for a classifier, in a fixed random order.

    Args:
        dataset: A data set with classes.

    Returns:
        The pictures uint8 [N, C, H, W], their classes [N] and the number of classes.

    Raises:
        ValueError: The data set has no classes.
    """
    if not dataset.num_classes:
        raise ValueError(
            'extractor must not be a classifier for data without classes; '
            f'{dataset.source} has none. Choose another extractor: {EXTRACTOR_WORDS}'
        )
    indices = choose_pictures(dataset, LEARNT_FROM)
    items = [dataset[i] for i in indices]
    return (
        torch.stack([item['image'] for item in items]),
        torch.tensor([item['class_cond'] for item in items]),
        dataset.num_classes,
    )
