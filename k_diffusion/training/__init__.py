"""Training: a loss, a loader and hooks in; weights, their average and checkpoints out."""

from __future__ import annotations

from ..core.errors import Stop, StopAsked
from .checkpoints.folder import RunFolder, find_runs
from .checkpoints.lock import RunLocked, run_lock
from .checkpoints.manifest import Manifest, Record
from .checkpoints.reading import load_weights, read_training_checkpoint, unwrap
from .checkpoints.retention import Retention
from .distillation import DistillationConfig
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
from .hooks import CheckpointHook, GradientNoiseHook
from .log_files import CSVLogger, read_log
from .logs import LogHook
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
from .posthoc import Snapshot, SnapshotHook, combination, find_snapshots, reconstruct
from .settings import TrainingConfig
from .sharding import shard
from .trainer import Diverged, Hook, Trainer

__all__ = [
    'EMA_SCHEDS',
    'LR_SCHEDS',
    'OPTIMIZERS',
    'Adam8bitConfig',
    'AdamWConfig',
    'CSVLogger',
    'CheckpointHook',
    'ConstantLRConfig',
    'ConstantLRWithWarmup',
    'DistillationConfig',
    'Diverged',
    'EMAWarmup',
    'ExponentialLR',
    'ExponentialLRConfig',
    'GradientNoiseHook',
    'Hook',
    'InverseEMAConfig',
    'InverseLR',
    'InverseLRConfig',
    'LogHook',
    'Manifest',
    'Muon',
    'MuonConfig',
    'NewLayersWarmup',
    'PowerEMA',
    'PowerEMAConfig',
    'Record',
    'Retention',
    'RunFolder',
    'RunLocked',
    'SGDConfig',
    'Snapshot',
    'SnapshotHook',
    'Stop',
    'StopAsked',
    'Trainer',
    'TrainingConfig',
    'WarmupDecayLR',
    'WarmupDecayLRConfig',
    'combination',
    'ema_update',
    'ema_update_dict',
    'find_runs',
    'find_snapshots',
    'load_weights',
    'make_optimizer',
    'power_ema_exponent',
    'read_log',
    'read_training_checkpoint',
    'reconstruct',
    'run_lock',
    'shard',
    'unwrap',
]
