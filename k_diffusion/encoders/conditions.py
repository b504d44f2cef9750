"""Conditions of a model besides the noise level, by config: texts, embeddings, other images.

Each kind gives tensors under the names that the networks know: mapping_cond [B, D], cross_cond
[B, T, D] (with cross_cond_padding [B, T]) or unet_cond [B, C, H, W]. Zeros stand for no condition,
in training (with probability `dropout`) and in guidance.
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
#: Loads an image from a file, as data of the diffusion [C, H, W].
Load = Callable[[str], Tensor]


class Condition(ABC):
    """A condition that is ready for use: for a batch in training, or for a value from a user.

    Attributes:
        key: mapping_cond, cross_cond or unet_cond.
        width: The D or C that the model must be built with.
    """

    key: str
    width: int

    @abstractmethod
    def prepare(self, batch: dict[str, Any], draws: Draws) -> Tensors:
        """Return the tensors for a batch.

        Args:
            batch: image [B, C, H, W] and index [B] (the numbers of the images), item [B] (positions
                in the stream), and class_cond [B] and text (a list of B) if the data have them.
            draws: The random draws of an item.
        """

    @abstractmethod
    def from_text(self, value: str, load: Load) -> Tensors:
        """Return the tensors for one item, [1, ...], for a value from the command line.

        Args:
            value: The value.
            load: Loads an image from its path.
        """


@dataclass(kw_only=True)
class ConditionConfig(ABC):
    """The keys that all conditions share.

    Attributes:
        type: The kind, a name in CONDITIONS.
        dropout: The probability that the model gets zeros instead of the condition.
    """

    type: str = ''
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.dropout <= 1:
            raise ValueError(f'dropout must be a probability from 0 to 1; got {self.dropout}')

    @abstractmethod
    def make(self, channels: int, dataset: Any = None, device: Any = 'cpu') -> Condition:
        """Return the condition.

        Args:
            channels: The channels of the data.
            dataset: The data set in training; None in sampling.
            device: The device to encode on.
        """


#: The "type" of an entry of a config's conditions -> its dataclass.
CONDITIONS: Registry[type[ConditionConfig]] = Registry('condition type')


def draw_condition_masks(
    conditions: Sequence[tuple[ConditionConfig, Condition]], items: Tensor, draws: Draws
) -> Tensors:
    """Draw for each condition the items whose model gets it: 1 or 0, float32 [B] on the host.

    Args:
        conditions: With their configs.
        items: Positions in the stream, [B].
        draws: The random draws of an item.

    Returns:
        The draws by the type of the condition.
    """
    masks = {}
    for config, _ in conditions:
        share = draws.share(items, 'condition', config.type)
        masks[config.type] = (share >= config.dropout).float()
    return masks


def prepare_conditions(
    conditions: Sequence[tuple[ConditionConfig, Condition]],
    batch: dict[str, Any],
    draws: Draws,
    masks: Tensors,
) -> Tensors:
    """Return the tensors of all conditions for a batch of training, zeros for items without them.

    Args:
        conditions: With their configs.
        batch: As `Condition.prepare` takes it.
        draws: The random draws of an item.
        masks: The result of `draw_condition_masks`, on the device.
    """
    tensors: Tensors = {}
    for config, condition in conditions:
        for key, value in condition.prepare(batch, draws).items():
            mask = masks[config.type].view(-1, *[1] * (value.ndim - 1))
            tensors[key] = value * mask.to(value)
    return tensors


class _Table(Condition):
    """Features of each image by its number."""

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
                f'dataset must be given to prepare batches of {self.key}; got None: pass the data '
                'set to make()'
            )
        at, like = send(self.rows[batch['index']], self.features.device), batch['image']
        tensors = {self.key: send(self.features[at].to(like.dtype), like.device)}
        if self.padding is not None:
            tensors['cross_cond_padding'] = send(self.padding[at].to(like.dtype), like.device)
        return tensors

    def from_text(self, value: str, load: Load) -> Tensors:
        try:
            row = int(value)
        except ValueError:
            raise ValueError(
                f'a row of the embeddings must be a whole number; got {value!r}'
            ) from None
        rows = 0 if self.features is None else len(self.features)
        if self.features is None or not 0 <= row < rows:
            raise ValueError(f'a row of the embeddings must be from 0 to {rows - 1}; got {row}')
        return {self.key: self.features[row : row + 1].float()}


class _Texts(_Table):
    """Texts, which a user can ask for in words."""

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

    def from_text(self, value: str, load: Load) -> Tensors:
        return self._encode_texts([value])


class _BatchTexts(_Texts):
    """Texts from the batches of a data set that is read as a stream: captions, or classes."""

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
    """Texts: a line for each image in a file, the caption of each sample of shards, or class names.

    A class gives its text by a template.
    """

    type: Literal['text'] = 'text'
    encoder: str = BUILT_IN  # built-in, a folder of transformers, or a name on the hub
    into: Literal['cross', 'mapping'] = 'cross'
    # a text file, a line for each image, in the textual order of their names (1, 10, 2)
    location: str | None = None
    template: str = '{}'  # without texts: the text of a class, {} stands for its name
    length: int = 16  # tokens

    def make(self, channels: int, dataset: Any = None, device: Any = 'cpu') -> Condition:
        """Return the condition.

        Args:
            channels: The channels of the data.
            dataset: The data set in training; None in sampling.
            device: The device to encode on.
        """
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
                f'conditions: text.location must be given for {dataset.source}, which has neither '
                'texts nor classes; set it to a text file with a line for each image'
            )
        return [self.template.format(name) for name in dataset.class_names]

    def _texts(self, dataset: Any) -> tuple[list[str], Tensor]:
        if self.location is None:
            return self._classes(dataset), dataset.labels
        path = Path(self.location).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f'conditions: text.location must be a text file; {path} does not exist'
            )
        try:
            # splitlines would cut at other characters too
            lines = path.read_text('utf-8-sig').removesuffix('\n').split('\n')
        except UnicodeDecodeError as error:
            raise ValueError(
                f'{path} must be text in UTF-8, and its byte {error.start:,} is not; convert it'
            ) from None
        check_count(len(lines), dataset, f'{path} has', 'lines')
        unique = list(dict.fromkeys(lines))
        places = {text: i for i, text in enumerate(unique)}
        return unique, torch.tensor([places[line] for line in lines])


@CONDITIONS.register('embeddings')
@dataclass(kw_only=True)
class EmbeddingsConfig(ConditionConfig):
    """Embeddings from a .safetensors file, one for each image.

    They are its tensor `embeddings`, [N, D], or [N, T, D] for cross-attention.
    """

    type: Literal['embeddings'] = 'embeddings'
    location: str
    into: Literal['mapping', 'cross'] = 'mapping'

    def make(self, channels: int, dataset: Any = None, device: Any = 'cpu') -> Condition:
        """Return the condition.

        Args:
            channels: The channels of the data.
            dataset: The data set in training; None in sampling.
            device: The device to encode on.
        """
        table = load_safetensors(Path(self.location).expanduser()).get('embeddings')
        if table is None or table.ndim != (2 if self.into == 'mapping' else 3):
            shape = 'no such tensor' if table is None else f'the shape {list(table.shape)}'
            rule = '[N, D]' if self.into == 'mapping' else '[N, T, D]'
            raise ValueError(
                f'{self.location} must hold a tensor "embeddings" {rule} for {self.into}; '
                f'got {shape}'
            )
        if dataset is not None:
            check_count(len(table), dataset, f'{self.location} has', 'embeddings')
        return _Table(self.into, table, None, torch.arange(len(table)), table.shape[-1])


class _SuperResolution(Condition):
    key = 'unet_cond'

    def __init__(self, channels: int, factor: int) -> None:
        self.width, self.factor = channels, factor

    def prepare(self, batch: dict[str, Any], draws: Draws) -> Tensors:
        return {self.key: coarse(batch['image'], self.factor)}

    def from_text(self, value: str, load: Load) -> Tensors:
        return {self.key: coarse(load(value)[None], self.factor)}


@CONDITIONS.register('super-resolution')
@dataclass(kw_only=True)
class SuperResolutionConfig(ConditionConfig):
    """The same image at a lower resolution, beside the input of the model.

    Its sides are `factor` times smaller, and it is resized to the size of the input.
    """

    type: Literal['super-resolution'] = 'super-resolution'
    factor: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor < 2:
            raise ValueError(f'factor must be at least 2; got {self.factor}')

    def make(self, channels: int, dataset: Any = None, device: Any = 'cpu') -> Condition:
        """Return the condition.

        Args:
            channels: The channels of the data.
            dataset: The data set in training; None in sampling.
            device: The device to encode on.
        """
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
        mask = (~inside[:, None]).to(x)
        return {self.key: torch.cat([mask, x * mask], 1)}

    def from_text(self, value: str, load: Load) -> Tensors:
        """Return the tensors for a value IMAGE or IMAGE,TOP,BOTTOM,LEFT,RIGHT.

        The numbers are the box to draw, in shares of the sides; by default it is the lower half.
        """
        path, *sides = value.split(',')
        x = load(path)[None]
        try:
            top, bottom, left, right = (
                (float(side) for side in sides) if sides else (0.5, 1.0, 0.0, 1.0)
            )
        except ValueError:
            raise ValueError(
                'an image with a box must be IMAGE,TOP,BOTTOM,LEFT,RIGHT with four shares from 0 '
                f'to 1; got {value!r}'
            ) from None
        h, w = x.shape[2:]
        mask = torch.ones(1, 1, h, w)
        mask[:, :, round(top * h) : round(bottom * h), round(left * w) : round(right * w)] = 0
        return {self.key: torch.cat([mask, x * mask], 1)}

    def _draw_sides(self, size: Sequence[int], items: Tensor, draws: Draws) -> Tensor:
        """Draw a box of random sides in a random place for each item, int64 [B, 4] on the host.

        Its numbers are the first and the end row, and the first and the end column.
        """
        shares, places = draws.uniform(items, 4, 'box').split(2, 1)
        sides = torch.tensor(size, dtype=torch.float64)
        lengths = (sides * (shares * self.largest)).round().clamp(min=1)
        starts = ((sides - lengths) * places).round()
        return torch.stack([starts, starts + lengths], 2).flatten(1).long()


@CONDITIONS.register('inpainting')
@dataclass(kw_only=True)
class InpaintingConfig(ConditionConfig):
    """The image without a random box, behind its mask, beside the input of the model.

    The mask is 1 where the image is known.
    """

    type: Literal['inpainting'] = 'inpainting'
    largest: float = 1.0  # the longest side of a box, as a share of the image's side

    def make(self, channels: int, dataset: Any = None, device: Any = 'cpu') -> Condition:
        """Return the condition.

        Args:
            channels: The channels of the data.
            dataset: The data set in training; None in sampling.
            device: The device to encode on.
        """
        return _Inpainting(channels, self.largest)


def coarse(x: Tensor, factor: int) -> Tensor:
    """Average images over squares, and resize them to their size by bilinear interpolation.

    Args:
        x: Images, [B, C, H, W].
        factor: The side of a square.

    Raises:
        ValueError: If the sides are not multiples of factor.
    """
    if x.shape[2] % factor or x.shape[3] % factor:
        raise ValueError(
            'conditions: super-resolution.factor must divide the sides of the images, '
            f'{x.shape[2]}x{x.shape[3]}; got {factor}'
        )
    return F.interpolate(
        F.avg_pool2d(x, factor), scale_factor=float(factor), mode='bilinear', align_corners=False
    )


def check_count(n: int, dataset: Any, has: str, what: str) -> None:
    """Check that a file has an entry for each image, and warn if their order is doubtful.

    Args:
        n: The number of entries.
        dataset: The data set.
        has: The beginning of the message, such as 'texts.txt has'.
        what: The kind of entry, in the plural.

    Raises:
        ValueError: If the numbers differ.
    """
    if n != len(dataset):
        left_out = f' ({len(dataset.skipped)} more could not be read)' if dataset.skipped else ''
        raise ValueError(
            f'{has} {n} {what} for the {len(dataset)} images of {dataset.source}{left_out}; '
            'there must be one for each'
        )
    names = getattr(dataset, 'names', None) or []
    if names != sorted(names, key=_numbers_as_numbers):
        examples = ', '.join(escape_name(name) for name in names[:3])
        warnings.warn(
            f'{has} {what} for images in the textual order of their names ({examples}, ...), which '
            'is not the order of their numbers; check that the file has this order, or add leading '
            'zeros to the numbers',
            stacklevel=3,
        )


def _numbers_as_numbers(name: str) -> list[list[tuple[int, str]]]:
    """Return a key that sorts names folder by folder, and the numbers in them by value."""
    return [
        [
            (int(part), '') if part.isdecimal() and len(part) < 100 else (-1, part)
            for part in re.split('([0-9]+)', folder)
        ]
        for folder in name.split('/')
    ]
