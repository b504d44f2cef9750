"""Fixtures and settings of all tests.

Every test and every process it starts uses one thread, since more slow each other down.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

os.environ.setdefault('OMP_NUM_THREADS', '1')
torch.set_num_threads(1)

GOLDEN = Path(__file__).parent / 'golden'


@pytest.fixture(scope='session')
def golden():
    """golden(name) -> the tensors that the original gives, by name (tests/golden/README.md)."""
    return lambda name: load_file(GOLDEN / f'{name}.safetensors')


@pytest.fixture(scope='session')
def golden_meta():
    """golden_meta(name) -> the entry of tests/golden/index.json: options and descriptions of
    each case.
    """
    index = json.loads((GOLDEN / 'index.json').read_text())
    return lambda name: index[name]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
