"""k-diffusion: train, sample, guide and measure diffusion models.

The rooms are attributes of this package, imported when first touched: `K.sampling`, `K.external`, `K.layers`, `K.models`,
`K.config`, `K.augmentation`, `K.utils` and so on. `K.load_model(path)` gives the denoiser of a trained checkpoint,
`K.sample(denoiser, shape)` samples from it. The commands of `k-diffusion` are calls: `K.train`, `K.evaluate`, `K.likelihood`,
`K.calibrate` and the others of `K.tasks`.
"""
from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = '0.3.0'

ROOMS = ('augmentation', 'cli', 'config', 'core', 'data', 'denoisers', 'encoders', 'evaluation', 'external', 'generation', 'gns',
         'guidance', 'layers', 'models', 'sampling', 'schedules', 'tasks', 'training', 'utils')
_NAMES = {'Denoiser': 'denoisers', 'load_model': 'config', 'sample': 'generation', 'share': 'core.conditions'}

if TYPE_CHECKING:
    from .config import load_model as load_model
    from .core.conditions import share as share
    from .denoisers import Denoiser as Denoiser
    from .generation import sample as sample


def __getattr__(name: str) -> Any:
    if name in ROOMS:
        return importlib.import_module(f'.{name}', __name__)
    if name in _NAMES:
        return getattr(importlib.import_module(f'.{_NAMES[name]}', __name__), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *ROOMS, *_NAMES})
