"""What a model is told besides the noise level, by config: texts, embeddings in files, other
pictures.

Each kind gives tensors under the names that the networks know: mapping_cond [B, D], cross_cond [B,
T, D] (with cross_cond_padding [B, T]) or unet_cond [B, C, H, W]. Zeros stand for nothing told, in
training (with probability `dropout`) and in guidance.
"""

from __future__ import annotations

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.devices import send
from ..core.draws import Draws
from ..core.names import escape_name
from ..core.registry import Registry
from ..core.weights import load_safetensors
from .texts import BUILT_IN, TextFeatures, pooled

Tensors = dict[str, Tensor]
#: From a picture file to what is diffused, [C, H, W].
Load = Callable[[str], Tensor]


class Condition(ABC):
    """A condition that is ready: of a batch in training, or of what a user asks for."""

    key: str  # mapping_cond, cross_cond or unet_cond
    width: int  # the D or C that the model must be built with

    @abstractmethod
    def prepare(self, batch: dict[str, Any], draws: Draws) -> Tensors:
        """The tensors for a batch: image [B, C, H, W], item [B] (positions in the stream), index
        [B] (which pictures), and class_cond [B] and text (a list of B) where the data have them.
        """

    @abstractmethod
    def asked(self, value: str, load: Load) -> Tensors:
        """The tensors for one item, [1, ...], as asked for on the command line."""


@dataclass(kw_only=True)
class ConditionConfig(ABC):
    """The keys that all conditions share. dropout: how often the model is not told."""

    type: str = ''
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.dropout <= 1:
            raise ValueError(f'dropout is {self.dropout}; it must be a probability from 0 to 1')

    @abstractmethod
    def make(self, channels: int, dataset: Any = None, device: Any = 'cpu') -> Condition:
        """The condition for data of so many channels; with the data set in training, without it
        in sampling.
        """


#: The "type" of an entry of a config's conditions -> its dataclass.
CONDITIONS: Registry[type[ConditionConfig]] = Registry('condition type')


def draw_kept(
    conditions: Sequence[tuple[ConditionConfig, Condition]], items: Tensor, draws: Draws
) -> Tensors:
    """Draw for each condition the items whose model is told of it: 1 or 0, float32 [B] on the
    host, by the condition's type.
    """
    kept = {}
    for config, _ in conditions:
        share = draws.share(items, 'condition', config.type)
        kept[config.type] = (share >= config.dropout).float()
    return kept


def prepare_conditions(
    conditions: Sequence[tuple[ConditionConfig, Condition]],
    batch: dict[str, Any],
    draws: Draws,
    kept: Tensors,
) -> Tensors:
    """Return the tensors of all conditions for a batch of training, zeros where an item is not
    told.

    Args:
        conditions: With their configs.
        batch: As `Condition.prepare` takes it.
        draws: What is drawn for an item.
        kept: What `draw_kept` drew, on the device.
    """
    tensors: Tensors = {}
    for config, condition in conditions:
        for key, value in condition.prepare(batch, draws).items():
            mask = kept[config.type].view(-1, *[1] * (value.ndim - 1))
            tensors[key] = value * mask.to(value)
    return tensors


class _Table(Condition):
    """Features of each picture by its number."""

    def __init__(
        self,
        into: str,
        features: Tensor | None,
        padding: Tensor | None,
        rows: Tensor | None,
        width: int,
    ) -> None:
        self.key, self.width, self.features, self.padding, self.rows = (
            f'{into}_cond',
            width,
            features,
            padding,
            rows,
        )

    def prepare(self, batch: dict[str, Any], draws: Draws) -> Tensors:
        if self.features is None or self.rows is None:
            raise ValueError(
                f'the condition for {self.key} was made without its data set; it can answer what '
                'is asked, but prepare no '
                'batch'
            )
        at, like = send(self.rows[batch['index']], self.features.device), batch['image']
        tensors = {self.key: send(self.features[at].to(like.dtype), like.device)}
        if self.padding is not None:
            tensors['cross_cond_padding'] = send(self.padding[at].to(like.dtype), like.device)
        return tensors

    def asked(self, value: str, load: Load) -> Tensors:
        try:
            row = int(value)
        except ValueError:
            raise ValueError(
                f'{value!r} is no row of the embeddings; give a whole number'
            ) from None
        rows = 0 if self.features is None else len(self.features)
        if self.features is None or not 0 <= row < rows:
            raise ValueError(f'{row} is no row of the embeddings; there are {rows}, from 0 on')
        return {self.key: self.features[row : row + 1].float()}


class _Texts(_Table):
    """Texts, which can be asked for in words."""

    def __init__(
        self, into: str, encoder: TextFeatures, texts: Sequence[str], rows: Tensor | None
    ) -> None:
        self.into, self.encoder = into, encoder
        probe = self._encode_texts(list(texts) or ['text'])
        super().__init__(
            into,
            probe[f'{into}_cond'] if texts else None,
            probe.get('cross_cond_padding') if texts else None,
            rows,
            probe[f'{into}_cond'].shape[-1],
        )

    def _encode_texts(self, texts: list[str]) -> Tensors:
        features, padding = self.encoder(texts)
        if self.into == 'mapping':
            return {'mapping_cond': pooled(features, padding)}
        return {'cross_cond': features, 'cross_cond_padding': padding}

    def asked(self, value: str, load: Load) -> Tensors:
        return self._encode_texts([value])


class _BatchTexts(_Texts):
    """Texts that come with the batches of a data set that is read as a stream: captions, or the
    texts of its classes.
    """

    def __init__(self, into: str, encoder: TextFeatures, classes: Sequence[str] = ()) -> None:
        super().__init__(into, encoder, classes, None)

    def prepare(self, batch: dict[str, Any], draws: Draws) -> Tensors:
        if self.features is None:
            tensors = self._encode_texts(batch['text'])
        else:
            at = batch['class_cond'].to(self.features.device)
            tensors = {self.key: self.features[at]}
            if self.padding is not None:
                tensors['cross_cond_padding'] = self.padding[at]
        return {key: value.to(batch['image']) for key, value in tensors.items()}


@CONDITIONS.register('text')
@dataclass(kw_only=True)
class TextConfig(ConditionConfig):
    """Texts: a line for each picture in a file, the caption of each sample of shards, or a
    template with the name of its class.
    """

    type: Literal['text'] = 'text'
    encoder: str = BUILT_IN  # built-in, a folder of transformers, or a name on the hub
    into: Literal['cross', 'mapping'] = 'cross'
    location: str | None = (
        None  # a text file, a line for each picture, in the textual order of their names (1, 10, 2)
    )
    template: str = '{}'  # where there are no texts: the text of a class, {} its name
    length: int = 16  # tokens

    def make(self, channels: int, dataset: Any = None, device: Any = 'cpu') -> Condition:
        encoder = TextFeatures(self.encoder, self.length, device)
        if dataset is not None and dataset.streams and self.location is None:
            return _BatchTexts(
                self.into, encoder, () if dataset.has_texts else self._classes(dataset)
            )
        texts, rows = ([], None) if dataset is None else self._texts(dataset)
        return _Texts(self.into, encoder, texts, rows)

    def _classes(self, dataset: Any) -> list[str]:
        if not dataset.num_classes:
            raise ValueError(
                f'conditions: text has no location, and {dataset.source} has no texts and no '
                'classes to make them of; '
                'name a file'
            )
        return [self.template.format(name) for name in dataset.class_names]

    def _texts(self, dataset: Any) -> tuple[list[str], Tensor]:
        if self.location is None:
            return self._classes(dataset), dataset.labels
        path = Path(self.location).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f'conditions: text.location is {path}, and there is no such file'
            )
        try:
            lines = (
                path.read_text('utf-8-sig').removesuffix('\n').split('\n')
            )  # (splitlines would cut at rarer characters too)
        except UnicodeDecodeError as error:
            raise ValueError(
                f'{path} is not text in UTF-8 (byte {error.start:,}); convert it'
            ) from None
        check_count(len(lines), dataset, f'{path} has', 'lines')
        unique = list(dict.fromkeys(lines))
        places = {text: i for i, text in enumerate(unique)}
        return unique, torch.tensor([places[line] for line in lines])


@CONDITIONS.register('embeddings')
@dataclass(kw_only=True)
class EmbeddingsConfig(ConditionConfig):
    """Embeddings [N, D] (or [N, T, D] for cross) under the name `embeddings` in a .safetensors
    file, one for each picture.
    """

    type: Literal['embeddings'] = 'embeddings'
    location: str
    into: Literal['mapping', 'cross'] = 'mapping'

    def make(self, channels: int, dataset: Any = None, device: Any = 'cpu') -> Condition:
        found = load_safetensors(Path(self.location).expanduser()).get('embeddings')
        if found is None or found.ndim != (2 if self.into == 'mapping' else 3):
            shape = (
                'no tensor "embeddings"'
                if found is None
                else f'embeddings of shape {list(found.shape)}'
            )
            wanted = '[N, D]' if self.into == 'mapping' else '[N, T, D]'
            raise ValueError(
                f'{self.location} holds {shape}; {self.into} takes "embeddings" {wanted}'
            )
        if dataset is not None:
            check_count(len(found), dataset, f'{self.location} has', 'embeddings')
        return _Table(self.into, found, None, torch.arange(len(found)), found.shape[-1])


class _SuperResolution(Condition):
    key = 'unet_cond'

    def __init__(self, channels: int, factor: int) -> None:
        self.width, self.factor = channels, factor

    def prepare(self, batch: dict[str, Any], draws: Draws) -> Tensors:
        return {self.key: coarse(batch['image'], self.factor)}

    def asked(self, value: str, load: Load) -> Tensors:
        return {self.key: coarse(load(value)[None], self.factor)}


@CONDITIONS.register('super-resolution')
@dataclass(kw_only=True)
class SuperResolutionConfig(ConditionConfig):
    """The same picture with sides `factor` times less, brought back to size, beside the model's
    input.
    """

    type: Literal['super-resolution'] = 'super-resolution'
    factor: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor < 2:
            raise ValueError(f'factor is {self.factor}; it must be at least 2')

    def make(self, channels: int, dataset: Any = None, device: Any = 'cpu') -> Condition:
        return _SuperResolution(channels, self.factor)


class _Inpainting(Condition):
    key = 'unet_cond'

    def __init__(self, channels: int, largest: float) -> None:
        self.width, self.largest = channels + 1, largest

    def prepare(self, batch: dict[str, Any], draws: Draws) -> Tensors:
        x = batch['image']
        sides = send(self._draw_sides(x.shape[2:], batch['item'], draws), x.device)
        top, bottom, left, right = sides[:, :, None, None].unbind(1)
        row = torch.arange(x.shape[2], device=x.device)[:, None]
        column = torch.arange(x.shape[3], device=x.device)
        inside = (row >= top) & (row < bottom) & (column >= left) & (column < right)
        known = (~inside[:, None]).to(x)
        return {self.key: torch.cat([known, x * known], 1)}

    def asked(self, value: str, load: Load) -> Tensors:
        """picture, whose lower half is to be drawn; or picture,top,bottom,left,right, a box in
        shares of the sides.
        """
        path, *sides = value.split(',')
        x = load(path)[None]
        try:
            top, bottom, left, right = (
                (float(side) for side in sides) if sides else (0.5, 1.0, 0.0, 1.0)
            )
        except ValueError:
            raise ValueError(
                f'{value!r} names no box; give PICTURE,TOP,BOTTOM,LEFT,RIGHT with four shares '
                'from 0 to 1'
            ) from None
        h, w = x.shape[2:]
        known = torch.ones(1, 1, h, w)
        known[:, :, round(top * h) : round(bottom * h), round(left * w) : round(right * w)] = 0
        return {self.key: torch.cat([known, x * known], 1)}

    def _draw_sides(self, size: Sequence[int], items: Tensor, draws: Draws) -> Tensor:
        """Draw a box of random sides in a random place for each item: its first and end row, and
        first and end column, int64 [B, 4] on the host.
        """
        shares, places = draws.uniform(items, 4, 'box').split(2, 1)
        sides = torch.tensor(size, dtype=torch.float64)
        lengths = (sides * (shares * self.largest)).round().clamp(min=1)
        starts = ((sides - lengths) * places).round()
        return torch.stack([starts, starts + lengths], 2).flatten(1).long()


@CONDITIONS.register('inpainting')
@dataclass(kw_only=True)
class InpaintingConfig(ConditionConfig):
    """The picture with a random box left out, behind its mask (1 where it is known), beside the
    model's input.
    """

    type: Literal['inpainting'] = 'inpainting'
    largest: float = 1.0  # the longest side of a box, as a share of the picture's

    def make(self, channels: int, dataset: Any = None, device: Any = 'cpu') -> Condition:
        return _Inpainting(channels, self.largest)


def coarse(x: Tensor, factor: int) -> Tensor:
    """x [B, C, H, W] averaged over squares and brought back to size."""
    if x.shape[2] % factor or x.shape[3] % factor:
        raise ValueError(
            f'conditions: super-resolution.factor is {factor}, and sides of '
            f'{x.shape[2]}x{x.shape[3]} are no multiples of it'
        )
    return F.interpolate(
        F.avg_pool2d(x, factor), scale_factor=float(factor), mode='bilinear', align_corners=False
    )


def check_count(n: int, dataset: Any, has: str, what: str) -> None:
    """Refuses a file with another number of entries than there are pictures."""
    if n != len(dataset):
        left_out = f' ({len(dataset.skipped)} more could not be read)' if dataset.skipped else ''
        raise ValueError(
            f'{has} {n} {what} for the {len(dataset)} pictures of {dataset.source}{left_out}; '
            'there must be one for each'
        )
    names = getattr(dataset, 'names', None) or []
    if names != sorted(names, key=_numbers_as_numbers):
        shown = ', '.join(escape_name(name) for name in names[:3])
        warnings.warn(
            f'{has} {what} for pictures in the textual order of their names ({shown}, ...), which '
            'is not the order of their '
            'numbers; check that the file has this order, or give the numbers leading zeros',
            stacklevel=3,
        )


def _numbers_as_numbers(name: str) -> list[list[tuple[int, str]]]:
    """A key that sorts names folder by folder, and the numbers in them by value."""
    return [
        [
            (int(part), '') if part.isdecimal() and len(part) < 100 else (-1, part)
            for part in re.split('([0-9]+)', folder)
        ]
        for folder in name.split('/')
    ]
