"""Calibrations as JSON: small, checked on reading, and exact to the last bit."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...core.files import read_json
from ...core.spectral import dct, inverse_dct
from ..spectrum import BANDS, Spectrum, bands
from .solver import Calibration

VERSION = 2
_ADDED_SINCE_1 = {'published', 'options', 'quality'}
_MOST = 2**28  # largest number of elements of an item
_KEYS = {'version', *(field.name for field in dataclasses.fields(Calibration))}


def to_dict(calibration: Calibration) -> dict[str, Any]:
    """Return a calibration as plain JSON values.

    Args:
        calibration: The calibration.
    """
    plain = {
        field.name: getattr(calibration, field.name) for field in dataclasses.fields(calibration)
    }
    return {
        'version': VERSION,
        **plain,
        'sigmas': list(calibration.sigmas),
        'corrections': [list(row) for row in calibration.corrections],
        'spectrum': spectrum_to_dict(calibration.spectrum),
        'scores': dict(calibration.scores),
        'options': dict(calibration.options),
        'quality': dict(calibration.quality),
        'guidance_interval': calibration.guidance_interval and list(calibration.guidance_interval),
        'conditions': list(calibration.conditions),
    }


def from_dict(value: Any, name: str = 'the calibration') -> Calibration:
    """Return the calibration of such values, of any version.

    Args:
        value: The result of `to_dict`.
        name: The name of the source in messages.

    Raises:
        ValueError: If the values are not a calibration.
    """
    if (
        isinstance(value, Mapping)
        and value.get('version') == 1
        and set(value) == _KEYS - _ADDED_SINCE_1
    ):
        value = {**value, 'published': '', 'options': {}, 'quality': {}}
    elif not isinstance(value, Mapping) or value.get('version') != VERSION or set(value) != _KEYS:
        raise ValueError(
            f'{name} must be a calibration of version 1 or {VERSION}; create it again with '
            'k-diffusion calibrate'
        )
    try:
        interval = value['guidance_interval']
        return Calibration(
            _text(value['base']),
            tuple(map(_number, value['sigmas'])),
            tuple(tuple(map(_number, row)) for row in value['corrections']),
            spectrum_from_dict(value['spectrum']),
            _numbers(value['scores']),
            _text(value['model']),
            _number(value['guidance']),
            interval and (_number(interval[0]), _number(interval[1])),
            tuple(map(_text, value['conditions'])),
            _text(value['published']),
            {_text(key): _option(option) for key, option in value['options'].items()},
            _numbers(value['quality']),
        )
    except (
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        RuntimeError,
        OverflowError,
        ValueError,
    ) as error:
        raise ValueError(
            f'{name} is damaged ({error}); create it again with k-diffusion calibrate'
        ) from None


def to_json(calibration: Calibration) -> str:
    """Return a calibration as JSON.

    Args:
        calibration: The calibration.
    """
    return json.dumps(to_dict(calibration), allow_nan=False)


def from_json(text: str, name: str = 'the calibration') -> Calibration:
    """Return the calibration of a text that `to_json` wrote.

    Args:
        text: The JSON.
        name: The name of the source in messages.

    Raises:
        ValueError: If the text is not a calibration.
    """
    return from_dict(read_json(text, name), name)


def spectrum_to_dict(spectrum: Spectrum) -> dict[str, Any]:
    """Return a spectrum as JSON values with five digits.

    A spectrum of cosines is stored as the lowest frequencies of the mean and one variance per band.

    Args:
        spectrum: The spectrum.
    """
    mean, variance = spectrum.mean.double().cpu(), spectrum.variance.double().cpu()
    basis: Any = spectrum.basis
    if spectrum.basis == 'cosines' and not isinstance(spectrum.basis, Tensor):
        mean = dct(mean[None])[0]
        for axis, n in enumerate(spectrum.variance.shape[1:], 1):
            mean = mean.narrow(axis, 0, min(n, BANDS))
            kinds = bands(n)
            variance = variance.index_select(
                axis, torch.tensor([kinds.index(band) for band in sorted(set(kinds))])
            )
    elif isinstance(spectrum.basis, Tensor):
        basis = _to_text(spectrum.basis, 9)
    return {
        'shape': list(spectrum.variance.shape),
        'mean': _to_text(mean, 5),
        'variance': _to_text(variance, 5),
        'basis': basis,
    }


def spectrum_from_dict(value: Any) -> Spectrum:
    """Return the spectrum of such values.

    Args:
        value: The result of `spectrum_to_dict`.

    Raises:
        ValueError: If the values do not fit each other.
    """
    shape = [int(_number(side)) for side in value['shape']]
    if math.prod(shape) > _MOST:
        raise ValueError(f'its spectrum has items of shape {shape}')
    mean, variance = _tensor(value['mean']), _tensor(value['variance'])
    if value['basis'] != 'cosines':
        spectrum = Spectrum(
            mean, variance, None if value['basis'] is None else _tensor(value['basis'])
        )
        if list(variance.shape) != shape or (
            isinstance(spectrum.basis, Tensor) and list(spectrum.basis.shape) != shape * 2
        ):
            raise ValueError(
                f'its spectrum has items of shape {shape} and variances of shape '
                f'{list(variance.shape)}'
            )
        return spectrum
    low = [shape[0], *(min(n, BANDS) for n in shape[1:])]
    if list(mean.shape) != low or list(variance.shape) != [
        shape[0],
        *(len(set(bands(n))) for n in shape[1:]),
    ]:
        raise ValueError(
            f'its spectrum has items of shape {shape} and tables of the shapes '
            f'{list(mean.shape)} and {list(variance.shape)}'
        )
    full = torch.zeros(shape, dtype=torch.float64)
    full[tuple(slice(n) for n in low)] = mean
    for axis, n in enumerate(shape[1:], 1):
        variance = variance.index_select(axis, torch.tensor(bands(n)))
    return Spectrum(inverse_dct(full[None])[0], variance, 'cosines')


def _to_text(values: Tensor, digits: int) -> dict[str, Any]:
    """Return a tensor as its shape and one line of numbers."""
    return {
        'shape': list(values.shape),
        'values': ' '.join(f'{value:.{digits}g}' for value in values.flatten().tolist()),
    }


def _tensor(value: Any) -> Tensor:
    numbers = torch.tensor(
        [float(word) for word in _text(value['values']).split()], dtype=torch.float64
    )
    if not bool(numbers.isfinite().all()):
        raise ValueError('a number of its spectrum is not finite')
    return numbers.view([int(_number(side)) for side in value['shape']])


def _numbers(values: Any) -> dict[str, float]:
    return {_text(key): _number(value) for key, value in values.items()}


def _option(value: Any) -> bool | int | float | str:
    return value if isinstance(value, (bool, int, str)) else _number(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f'a number must be finite; got {value!r}')
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f'a text must be a string; got {value!r}')
    return value
