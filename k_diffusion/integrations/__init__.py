"""The samplers inside programs that generate images.

A module is imported on access, and imports its host itself.
"""

from __future__ import annotations

import importlib
from typing import Any

MODULES = ('comfyui', 'diffusers', 'diffusers_modular')


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return importlib.import_module(f'.{name}', __name__)


def __dir__() -> list[str]:
    return sorted({*globals(), *MODULES})
