"""k-diffusion: train, sample, guide and measure diffusion models.

The rooms are attributes of this package, imported when first touched: `K.sampling`, `K.external`,
`K.layers`, `K.models`, `K.config`, `K.augmentation`, `K.utils` and so on. `K.load_model(path)`
gives the denoiser of a trained checkpoint, `K.sample(denoiser, shape)` samples from it. The
commands of `k-diffusion` are calls: `K.train`, `K.distill`, `K.tune`, `K.evaluate`,
`K.likelihood`, `K.calibrate`, `K.clip`, `K.info`, `K.convert`, `K.checkpoints`, `K.ema`,
`K.inspect_dataset`, `K.pack_dataset`, `K.grid`, `K.train_autoencoder`, `K.demo` and
`K.extract_config`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = '0.3.0'

ROOMS = (
    'augmentation',
    'cli',
    'config',
    'core',
    'data',
    'denoisers',
    'encoders',
    'evaluation',
    'external',
    'generation',
    'gns',
    'guidance',
    'integrations',
    'layers',
    'models',
    'probing',
    'recipes',
    'sampling',
    'schedules',
    'tasks',
    'training',
    'utils',
)
#: name -> where it lives: a module, and after a colon the name there where it is another
_NAMES = {
    'Denoiser': 'denoisers',
    'load_model': 'config',
    'probe': 'probing',
    'sample': 'generation',
    'share': 'core.conditions',
    'calibrate': 'tasks.calibrate',
    'checkpoints': 'tasks.checkpoints',
    'clip': 'tasks.clip',
    'convert': 'tasks.convert',
    'demo': 'tasks.demo',
    'distill': 'tasks.distill',
    'ema': 'tasks.ema',
    'evaluate': 'tasks.evaluate',
    'extract_config': 'tasks.config',
    'grid': 'tasks.grid',
    'info': 'tasks.info',
    'inspect_dataset': 'tasks.dataset',
    'likelihood': 'tasks.likelihood',
    'pack_dataset': 'tasks.pack',
    'Stop': 'training',
    'train': 'tasks.train',
    'train_autoencoder': 'tasks.autoencoder',
    'tune': 'tasks.tune',
}

if TYPE_CHECKING:
    from .config import load_model as load_model
    from .core.conditions import share as share
    from .denoisers import Denoiser as Denoiser
    from .generation import sample as sample
    from .probing import probe as probe
    from .tasks.autoencoder import train_autoencoder as train_autoencoder
    from .tasks.calibrate import calibrate as calibrate
    from .tasks.checkpoints import checkpoints as checkpoints
    from .tasks.clip import clip as clip
    from .tasks.config import extract_config as extract_config
    from .tasks.convert import convert as convert
    from .tasks.dataset import inspect_dataset as inspect_dataset
    from .tasks.demo import demo as demo
    from .tasks.distill import distill as distill
    from .tasks.ema import ema as ema
    from .tasks.evaluate import evaluate as evaluate
    from .tasks.grid import grid as grid
    from .tasks.info import info as info
    from .tasks.likelihood import likelihood as likelihood
    from .tasks.pack import pack_dataset as pack_dataset
    from .tasks.train import train as train
    from .tasks.tune import tune as tune
    from .training import Stop as Stop


def __getattr__(name: str) -> Any:
    if name in ROOMS:
        return importlib.import_module(f'.{name}', __name__)
    if name in _NAMES:
        module, _, attribute = _NAMES[name].partition(':')
        return getattr(importlib.import_module(f'.{module}', __name__), attribute or name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *ROOMS, *_NAMES})
