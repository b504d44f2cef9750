"""A parsed config, and the network, data and other objects that are built from it once."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from torch import Tensor, nn

from .. import schedules
from ..core.arguments import show_value
from ..core.protocols import Density
from ..core.python_files import load_reference
from ..data import Dataset, TensorFiles, open_dataset
from ..encoders import LatentEncoder
from ..models.python import PythonNetworkConfig
from .build import build_network, build_wrapper, make_sample_density
from .conditioning import Conditions, conditions_of
from .latents import encode_dataset, gives_pictures, make_decoder, make_encoder, picture_frame
from .load import (
    PYTHON_DENSITY,
    Sections,
    fill_defaults,
    parse_sections,
    plain,
    read_source,
)
from .overrides import change_config

Source = str | os.PathLike[str] | IO[str] | Mapping[str, Any]


def make_network(network: nn.Module | str, allow_code: bool) -> nn.Module:
    """Return a network as it is; 'FILE.py:CLASS' makes an instance of that class, without
    arguments.
    """
    if not isinstance(network, str):
        return network
    made: nn.Module = load_reference(network, 'network', allow_code)()
    return made


class Experiment:
    """A parsed config, and the network, denoiser, density, encoder, conditions and data it
    describes.

    `Experiment.open(path_or_dict)` parses the config; what is built of it is built when it is first
    asked for, and kept. The dict that it was opened with is never written to.

    Attributes:
        sections: The sections of the config, an instance of a dataclass each.
        base: The folder of the config, which files that it names are relative to.
        notes: Messages for the user.
        network: The network. Assign to it to take another one.
    """

    def __init__(self, raw: Mapping[str, Any], sections: Sections, base: Path = Path()) -> None:
        self._raw = copy.deepcopy(dict(raw))
        self.sections, self.base = sections, base
        self._weighting: Callable[[Tensor], Tensor] | None = None
        self._dataset: Dataset | None = None
        self.notes: list[str] = []
        self._encoders: dict[str, LatentEncoder | None] = {}
        self._conditions: dict[str, Conditions] = {}

    @classmethod
    def open(
        cls, source: Source, strict: bool = False, changes: Sequence[str] | Mapping[str, Any] = ()
    ) -> Experiment:
        """Read and parse a config.

        Args:
            source: The path of a .json file or of a .safetensors file that carries a config, an
                open file, or a dict.
            strict: Refuse keys that nothing reads; else one warning names them.
            changes: Other values for its keys, as `change_config` takes them.

        Raises:
            ValueError: It cannot be used; all that is wrong is named.
        """
        raw, name = read_source(source)
        raw = change_config(raw, changes) if changes else raw
        base = Path(source).parent if isinstance(source, (str, os.PathLike)) else Path()
        return cls(raw, parse_sections(raw, name, strict), base)

    def __deepcopy__(self, memo: dict[int, Any]) -> Experiment:
        return self  # a copy of a denoiser is of the same experiment

    def __getstate__(self) -> dict[str, Any]:
        kept = ('_raw', 'sections', 'base')
        return {key: vars(self)[key] for key in kept} | {
            '_weighting': None,
            '_dataset': None,
            'notes': [],
            '_encoders': {},
            '_conditions': {},
        }

    @functools.cached_property
    def network(self) -> nn.Module:
        """The network, its weights drawn from torch's global generator."""
        return build_network(self.sections)

    @functools.cached_property
    def denoiser(self) -> nn.Module:
        """The denoiser of the network."""
        return self.wrap(self.network)

    @property
    def shape(self) -> list[int]:
        """The shape [C, ...] of what is diffused."""
        return [self.sections.model.input_channels, *self.sections.model.input_size]

    @property
    def gives_pictures(self) -> bool:
        """Whether samples are pictures in [-1, 1]; else they are tensors, in the units of the
        data.
        """
        return gives_pictures(self.sections)

    @property
    def density(self) -> Density:
        """The distribution of training noise levels."""
        density: Density = self.sections.density
        return density

    def take_network(self, network: nn.Module, name: str = '') -> None:
        """Take a network of another kind than the config describes, whatever module that is.

        Args:
            network: The network.
            name: What the config calls it; by default its class.

        Raises:
            TypeError: It is not a module.
        """
        if not isinstance(network, nn.Module):
            raise TypeError(
                'network must be an instance of torch.nn.Module, called as '
                f'net(x, sigma, **cond); got {show_value(network)}'
            )
        old, new = self.sections.model, PythonNetworkConfig
        shared = {
            field.name: getattr(old, field.name)
            for field in dataclasses.fields(new)
            if field.name not in ('type', 'network')
        }
        model = new(network=name or type(network).__name__, **shared)
        self.sections = dataclasses.replace(self.sections, model=model)
        self._raw['model'] = {}
        self.network = network

    def take_dataset(self, dataset: Dataset) -> None:
        """Take a data set of another kind than the config describes.

        Raises:
            ValueError: Its items are not shaped as the model's.
        """
        if list(dataset.image_shape) != self.shape:
            raise ValueError(
                f'dataset must hold items of the shape {self.shape} that the model '
                f'takes; got {list(dataset.image_shape)}'
            )
        classes = self.sections.dataset.num_classes
        if classes and dataset.num_classes != classes:
            raise ValueError(
                f'dataset must have the {classes} classes that the model is told of; '
                f'got {dataset.num_classes}: pass num_classes={classes}'
            )
        self._dataset = dataset

    def take_density(self, density: Any) -> None:
        """Take another distribution of training noise levels.

        Args:
            density: One of this package, a section of a config for one, or an object with a method
                quantile(u) -> sigma for u [B] in (0, 1).

        Raises:
            TypeError: It is none of these.
        """
        section: Any = PYTHON_DENSITY
        if isinstance(density, Mapping):
            section, density = (
                dict(density),
                make_sample_density({**vars(self.sections.model), 'sigma_sample_density': density}),
            )
        elif isinstance(density, schedules.Density):
            density = density.filled(self.sections.model)
            values = plain(dataclasses.asdict(density))
            section = {key: value for key, value in values.items() if value not in (None, math.inf)}
        if not hasattr(density, 'quantile'):
            raise TypeError(
                'density must have a method quantile(u) -> sigma, as '
                'K.schedules.LogNormal(mean=-1.2, std=1.2) has; '
                f'got {show_value(density)}'
            )
        self.update('model', sigma_sample_density=section)
        self.sections = dataclasses.replace(self.sections, density=density)

    def take_weighting(self, weighting: Callable[[Tensor], Tensor]) -> None:
        """Take a function of sigma [B] as the weight [B] of the loss."""
        self._weighting = weighting

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return the denoiser D(x, sigma, **cond) of another instance of the network.

        It carries the experiment, and the range of noise levels that `K.sample` looks for.
        """
        model = self.sections.model
        denoiser = build_wrapper(model, self._weighting)(network)
        vars(denoiser)['experiment'] = self
        return denoiser

    def encoder(self, device: Any = 'cpu') -> LatentEncoder | None:
        """Return the encoder on a device; None where pixels are diffused."""
        key = str(device)
        if key not in self._encoders:
            self._encoders[key] = make_encoder(self.sections, device)
        return self._encoders[key]

    def decoder(self, device: Any = 'cpu') -> Callable[[Tensor], Tensor] | None:
        """Return what turns samples into pictures, or into the units of the data; None where
        they are that already.
        """
        return make_decoder(self.sections, self.encoder(device))

    def conditions(self, device: Any = 'cpu') -> Conditions:
        """Return the conditions, made for the data set where that is open."""
        key = f'{device} {self._dataset is not None}'
        if key not in self._conditions:
            self._conditions[key] = conditions_of(self.sections, self._dataset, device)
        return self._conditions[key]

    def dataset(
        self,
        device: Any = 'cpu',
        cache_dir: Path | None = None,
        allow_code: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Dataset:
        """Open the data set, as latents where the config has an encoder.

        The names of its classes and the statistics of the latents become part of the config.

        Args:
            device: Where pictures are encoded.
            cache_dir: Where decoded pictures and latents are kept.
            allow_code: Let a "custom" data set run its Python file.
            progress: Called with the number of pictures decoded so far, and of all.
        """
        if self._dataset is not None:
            return self._dataset
        encoder = self.encoder(device)
        section = self.sections.dataset
        dataset = open_dataset(
            section,
            *picture_frame(self.sections.model, encoder),
            self.base,
            allow_code,
            cache_dir=cache_dir,
            progress=progress,
        )
        names = dataset.class_names
        self.update(
            'dataset',
            class_names=names
            if section.num_classes and names and names != [str(i) for i in range(len(names))]
            else None,
        )
        if isinstance(dataset, TensorFiles):
            self.update('dataset', mean=dataset.mean, std=dataset.std)
            self._check_tensors(encoder)
        if encoder is not None:
            dataset = encode_dataset(dataset, encoder, cache_dir or Path('cache'), device, progress)
            self.update(
                'encoder', mean=encoder.mean.flatten().tolist(), std=encoder.std.flatten().tolist()
            )
        self._dataset = dataset
        return dataset

    def _check_tensors(self, encoder: LatentEncoder | None) -> None:
        """Refuse what serves pictures alone."""
        if encoder is not None:
            raise ValueError(
                'encoder.type must be pixels for the dataset type tensors; encode the data once '
                'and give the latents '
                'as tensors'
            )
        if self.sections.model.augment_prob:
            raise ValueError(
                'augment_prob must be 0 for the dataset type tensors; got '
                f'{self.sections.model.augment_prob}: '
                'dataset.crop and dataset.flip augment them'
            )

    def update(self, section: str, **values: Any) -> None:
        """Replace values of a section."""
        new = dataclasses.replace(getattr(self.sections, section), **values)
        self.sections = dataclasses.replace(self.sections, **{section: new})

    def as_dict(self) -> dict[str, Any]:
        """Return the config with every default written out, as checkpoints keep it."""
        return copy.deepcopy(fill_defaults(self._raw, self.sections))
