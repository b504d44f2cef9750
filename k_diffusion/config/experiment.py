"""A parsed config, with the network, data and other objects built from it once."""

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
from ..data import Dataset, DecodedPictures, TensorFiles, open_dataset
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
    """Return a network unchanged, or an instance of the class 'FILE.py:CLASS'.

    Args:
        network: The network, or the name of its class.
        allow_code: Permission to run the file.
    """
    if not isinstance(network, str):
        return network
    module: nn.Module = load_reference(network, 'network', allow_code)()
    return module


class Experiment:
    """A parsed config, and the objects that it describes.

    These are the network, denoiser, density, encoder, conditions and data.

    `Experiment.open(path_or_dict)` parses the config. Objects are built on first access and kept.
    The dict that it was opened with is never changed.

    Attributes:
        sections: The sections of the config, each an instance of a dataclass.
        base: The folder of the config, to which files in it are relative.
        notes: Messages for the user.
        decoded: Decoded images; `dataset` uses them instead of decoding the same files again.
        network: The network. Assign to it to use another one.
    """

    def __init__(self, raw: Mapping[str, Any], sections: Sections, base: Path = Path()) -> None:
        self._raw = copy.deepcopy(dict(raw))
        self.sections, self.base = sections, base
        self._weighting: Callable[[Tensor], Tensor] | None = None
        self._dataset: Dataset | None = None
        self.notes: list[str] = []
        self.decoded: DecodedPictures | None = None
        self._encoders: dict[str, LatentEncoder | None] = {}
        self._conditions: dict[str, Conditions] = {}

    @classmethod
    def open(
        cls, source: Source, strict: bool = False, changes: Sequence[str] | Mapping[str, Any] = ()
    ) -> Experiment:
        """Read and parse a config.

        Args:
            source: The path of a .json file or of a .safetensors file with a config, an open file,
                or a dict.
            strict: Refuse unknown keys; otherwise one warning names them.
            changes: Other values for its keys, as `change_config` takes them.

        Raises:
            ValueError: If it is invalid; the message names all errors.
        """
        raw, name = read_source(source)
        raw = change_config(raw, changes) if changes else raw
        base = Path(source).parent if isinstance(source, (str, os.PathLike)) else Path()
        return cls(raw, parse_sections(raw, name, strict), base)

    def __deepcopy__(self, memo: dict[int, Any]) -> Experiment:
        return self  # copies of a denoiser share the experiment

    def __getstate__(self) -> dict[str, Any]:
        names = ('_raw', 'sections', 'base')
        return {key: vars(self)[key] for key in names} | {
            '_weighting': None,
            '_dataset': None,
            'notes': [],
            'decoded': None,
            '_encoders': {},
            '_conditions': {},
        }

    @functools.cached_property
    def network(self) -> nn.Module:
        """Return the network, with weights from torch's global generator."""
        return build_network(self.sections)

    @functools.cached_property
    def denoiser(self) -> nn.Module:
        """Return the denoiser of the network."""
        return self.wrap(self.network)

    @property
    def shape(self) -> list[int]:
        """Return the shape [C, ...] of the diffused tensors."""
        return [self.sections.model.input_channels, *self.sections.model.input_size]

    @property
    def gives_pictures(self) -> bool:
        """Return True if samples are images in [-1, 1], False for tensors in the units of data."""
        return gives_pictures(self.sections)

    @property
    def density(self) -> Density:
        """Return the distribution of training noise levels."""
        density: Density = self.sections.density
        return density

    def take_network(self, network: nn.Module, name: str = '') -> None:
        """Replace the network of the config by any module.

        Args:
            network: The network.
            name: Its name in the config; by default its class.

        Raises:
            TypeError: If it is not a module.
        """
        if not isinstance(network, nn.Module):
            raise TypeError(
                'network must be an instance of torch.nn.Module, called as '
                f'net(x, sigma, **cond); got {show_value(network)}'
            )
        old, new = self.sections.model, PythonNetworkConfig
        entries = {
            field.name: getattr(old, field.name)
            for field in dataclasses.fields(new)
            if field.name not in ('type', 'network')
        }
        model = new(network=name or type(network).__name__, **entries)
        self.sections = dataclasses.replace(self.sections, model=model)
        self._raw['model'] = {}
        self.network = network

    def take_dataset(self, dataset: Dataset) -> None:
        """Replace the data set of the config.

        Args:
            dataset: The data set.

        Raises:
            ValueError: If its items or classes do not fit the model.
        """
        if list(dataset.image_shape) != self.shape:
            raise ValueError(
                f'dataset must hold items of the shape of the model, {self.shape}; got '
                f'{list(dataset.image_shape)}'
            )
        classes = self.sections.dataset.num_classes
        if classes and dataset.num_classes != classes:
            raise ValueError(
                f'dataset must have the {classes} classes of the model; got {dataset.num_classes}. '
                f'Pass num_classes={classes}'
            )
        self._dataset = dataset

    def take_density(self, density: Any) -> None:
        """Replace the distribution of training noise levels.

        Args:
            density: One of K.schedules, a section of a config for one, or an object with a method
                quantile(u) -> sigma for u [B] in (0, 1).

        Raises:
            TypeError: If it is none of these.
        """
        section: Any = PYTHON_DENSITY
        if isinstance(density, Mapping):
            section, density = (
                dict(density),
                make_sample_density({**vars(self.sections.model), 'sigma_sample_density': density}),
            )
        elif isinstance(density, schedules.Density):
            density = density.fill_from(self.sections.model)
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
        """Replace the weight of the loss.

        Args:
            weighting: A function of sigma [B] that returns the weights [B].
        """
        self._weighting = weighting

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return the denoiser D(x, sigma, **cond) of another instance of the network.

        It has the experiment, and the range of noise levels that `K.sample` reads.

        Args:
            network: The network.
        """
        model = self.sections.model
        denoiser = build_wrapper(model, self._weighting)(network)
        vars(denoiser)['experiment'] = self
        return denoiser

    def encoder(self, device: Any = 'cpu') -> LatentEncoder | None:
        """Return the encoder on a device; None for pixels.

        Args:
            device: The device.
        """
        key = str(device)
        if key not in self._encoders:
            self._encoders[key] = make_encoder(self.sections, device)
        return self._encoders[key]

    def decoder(self, device: Any = 'cpu') -> Callable[[Tensor], Tensor] | None:
        """Return the function from samples to images or to the units of the data; None for neither.

        Args:
            device: The device.
        """
        return make_decoder(self.sections, self.encoder(device))

    def conditions(self, device: Any = 'cpu') -> Conditions:
        """Return the conditions, made for the data set if that is open.

        Args:
            device: Where encoders compute.
        """
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
        """Open the data set, as latents if the config has an encoder.

        The names of its classes and the statistics of the latents are added to the config.

        Args:
            device: Where images are encoded.
            cache_dir: The folder of decoded images and latents.
            allow_code: Let a "custom" data set run its Python file.
            progress: Called with the number of decoded images and the total.
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
            decoded=self.decoded,
        )
        self.decoded = None
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
        """Raise a ValueError for settings that only fit images."""
        if encoder is not None:
            raise ValueError(
                'encoder.type must be pixels for the dataset type tensors; encode the data once '
                'and pass the latents as tensors'
            )
        if self.sections.model.augment_prob:
            raise ValueError(
                'augment_prob must be 0 for the dataset type tensors; got '
                f'{self.sections.model.augment_prob}. Use dataset.crop and dataset.flip'
            )

    def update(self, section: str, **values: Any) -> None:
        """Replace values of a section.

        Args:
            section: The name of the section.
            **values: The values by key.
        """
        new = dataclasses.replace(getattr(self.sections, section), **values)
        self.sections = dataclasses.replace(self.sections, **{section: new})

    def as_dict(self) -> dict[str, Any]:
        """Return the config with every default, as stored in checkpoints."""
        return copy.deepcopy(fill_defaults(self._raw, self.sections))
