"""Configs with mistakes in them: none reaches a traceback, every misspelt key is found."""

from __future__ import annotations

import copy
import json
import random

import pytest
import torch

from k_diffusion.config import load_config, make_denoiser_wrapper, make_model, sections_of

from .conftest import TINY


def misspellings(key):
    """A letter lost, doubled, changed, two swapped."""
    i = len(key) // 2
    return {
        key[:i] + key[i + 1 :],
        key[:i] + key[i] + key[i:],
        key[:i] + ('x' if key[i] != 'x' else 'y') + key[i + 1 :],
        key[: i - 1] + key[i] + key[i - 1] + key[i + 1 :],
    } - {key}


def test_every_key_misspelt_by_one_letter_is_refused():
    filled = load_config(TINY)
    places = [(section, key) for section, values in filled.items() for key in values]
    assert len(places) > 50
    for section, key in places:
        for wrong in misspellings(key):
            config = copy.deepcopy(filled)
            config[section][wrong] = config[section].pop(key)
            if wrong in filled[section]:
                continue
            with pytest.raises(ValueError, match='cannot be used') as error:
                load_config(config, strict=True)
            assert f'{section}.{wrong}' in str(error.value) or wrong in str(error.value), (
                section,
                wrong,
            )
    for section in filled:
        for wrong in misspellings(section):
            config = {**filled, wrong: filled[section]}
            with pytest.raises(
                ValueError, match=f'{wrong} is not a section; did you mean {section}'
            ):
                load_config(config, strict=True)


VALUES = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    3,
    7,
    10**9,
    -0.5,
    0.5,
    1e300,
    '',
    'x',
    '32',
    'image_v1',
    [],
    [1],
    [-1, 0],
    [1, 'a'],
    {},
    {'type': 'x'},
    {'type': []},
    [[]],
    'é\0',
]


def mutated(config, draw):
    """One or two values replaced, keys removed, added or moved, anywhere in it."""
    config = copy.deepcopy(config)
    for _ in range(draw.choice((1, 1, 2))):
        holders = list(_holders(config))
        holder = draw.choice(holders)
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        action = draw.random()
        if keys and action < 0.7:
            holder[draw.choice(keys)] = copy.deepcopy(draw.choice(VALUES))
        elif keys and action < 0.85:
            del holder[draw.choice(keys)]
        elif isinstance(holder, dict):
            holder[draw.choice(['extra', 'type', 'lr', '', 'chanels'])] = copy.deepcopy(
                draw.choice(VALUES)
            )
    return config


def _holders(value):
    if isinstance(value, (dict, list)):
        yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from _holders(item)


def check(seed, count):
    draw = random.Random(seed)
    bases = [
        load_config(TINY),
        load_config('configs/config_mnist_transformer.json'),
        load_config('configs/config_cifar10.json'),
    ]
    refused = 0
    for _ in range(count):
        config = mutated(draw.choice(bases), draw)
        try:
            filled = load_config(json.loads(json.dumps(config)), strict=True)
            sections = sections_of(filled)
            if _size(sections) < 10**9:
                with torch.device('meta'):
                    make_denoiser_wrapper(filled)(make_model(filled))
                    sections.optimizer.make(make_model(filled))
        except (ValueError, OSError, ImportError) as error:
            refused += 1
            assert str(error).strip(), config
        except Exception as error:
            raise AssertionError(
                f'{type(error).__name__}: {error} from {json.dumps(config)}'
            ) from error
    assert count * 0.3 < refused < count


def _size(sections):
    """Roughly how large the network is, so that giants are not even described."""
    numbers = [
        v
        for value in vars(sections.model).values()
        for v in (value if isinstance(value, (list, tuple)) else [value])
    ]
    return max([v for v in numbers if isinstance(v, (int, float))], default=0)


def test_a_hundred_mutations():
    check(1, 100)


@pytest.mark.faults
def test_two_thousand_mutations():
    check(2, 2000)
