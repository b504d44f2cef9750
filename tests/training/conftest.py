"""The toy that the tests here train; a file of its own because torchrun runs it too."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(scope='session')
def toy():
    spec = importlib.util.spec_from_file_location('training_toy', Path(__file__).parent / 'toy.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    """Accelerate keeps its settings in the process; each test begins without."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)
