"""The original's public names and parameters (tests/golden/surface.json), as programs written
for it read them.
"""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path

import pytest

SURFACE = json.loads((Path(__file__).parent / 'golden' / 'surface.json').read_text())
NAMES = [(room, name) for room, names in SURFACE.items() for name in names]


def parameters(thing):
    """(name, kind) of what a function, or the constructor of a class, takes."""
    try:
        return inspect.signature(thing).parameters
    except ValueError:
        return {}


def expected(room, name):
    for text in SURFACE[room][name]:
        if not text.startswith('*'):
            yield text.split('=')[0].split(':')[0].strip(), '=' in text


@pytest.mark.parametrize('room, name', NAMES, ids=str)
def test_the_name_is_there_and_takes_what_it_took(room, name):
    thing = getattr(importlib.import_module(f'k_diffusion.{room}'), name)
    takes = parameters(thing)
    parameters_then = list(expected(room, name))
    own = list(takes)
    assert [parameter for parameter, _ in parameters_then] == [
        parameter for parameter in own if parameter in dict(parameters_then)
    ]
    for parameter in own:
        if parameter not in dict(parameters_then):
            kind = takes[parameter].kind
            assert takes[parameter].default is not inspect.Parameter.empty or kind in (
                kind.VAR_POSITIONAL,
                kind.VAR_KEYWORD,
            )
    for parameter, optional in parameters_then:
        assert not optional or takes[parameter].default is not inspect.Parameter.empty


def test_the_list_is_the_originals():
    assert len(NAMES) > 150 and ('sampling', 'sample_dpmpp_2m_sde') in NAMES
