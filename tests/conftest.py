"""What the tests share: one thread (two torch programs on a small machine starve each other) and the golden numbers."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

GOLDEN = Path(__file__).parent / 'golden'


@pytest.fixture(scope='session')
def golden():
    """golden(name) -> the tensors that the original gives, by name (tests/golden/README.md)."""
    return lambda name: load_file(GOLDEN / f'{name}.safetensors')


@pytest.fixture(scope='session')
def golden_meta():
    """golden_meta(name) -> the entry of tests/golden/index.json: options and descriptions of each case."""
    index = json.loads((GOLDEN / 'index.json').read_text())
    return lambda name: index[name]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
