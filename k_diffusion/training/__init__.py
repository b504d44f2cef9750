"""Training: a loss, a loader and hooks in; weights, their average and checkpoints out."""
from __future__ import annotations

from .checkpoint import RunFolder, load_weights, read_training_checkpoint, unwrap
from .ema import (
    EMA_SCHEDS,
    EMAWarmup,
    InverseEMAConfig,
    PowerEMA,
    PowerEMAConfig,
    ema_update,
    ema_update_dict,
    power_ema_exponent,
)
from .growing import NewLayersWarmup
from .hooks import CheckpointHook, GradientNoiseHook, Hook
from .logs import CSVLogger, LogHook, read_log
from .lr import (
    LR_SCHEDS,
    ConstantLRConfig,
    ConstantLRWithWarmup,
    ExponentialLR,
    ExponentialLRConfig,
    InverseLR,
    InverseLRConfig,
    WarmupDecayLR,
    WarmupDecayLRConfig,
)
from .muon import Muon
from .optim import OPTIMIZERS, Adam8bitConfig, AdamWConfig, MuonConfig, SGDConfig, make_optimizer
from .settings import TrainingConfig
from .trainer import Diverged, Trainer

__all__ = [
    'EMA_SCHEDS', 'LR_SCHEDS', 'OPTIMIZERS', 'Adam8bitConfig', 'AdamWConfig', 'CSVLogger', 'CheckpointHook',
    'ConstantLRConfig', 'ConstantLRWithWarmup', 'Diverged', 'EMAWarmup', 'ExponentialLR', 'ExponentialLRConfig',
    'GradientNoiseHook', 'Hook', 'InverseEMAConfig', 'InverseLR', 'InverseLRConfig', 'LogHook', 'Muon', 'MuonConfig', 'NewLayersWarmup',
    'PowerEMA', 'PowerEMAConfig', 'RunFolder', 'SGDConfig', 'Trainer', 'TrainingConfig', 'WarmupDecayLR',
    'WarmupDecayLRConfig', 'ema_update', 'ema_update_dict', 'load_weights', 'make_optimizer', 'power_ema_exponent',
    'read_log', 'read_training_checkpoint', 'unwrap',
]
