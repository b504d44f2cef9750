"""Building blocks of networks, and the denoisers, which the original exports here too."""

from ..core.spectral import dct, freq_weight_1d, freq_weight_nd
from ..denoisers import Denoiser, DenoiserWithVariance, SimpleLossDenoiser
from .attention import CrossAttention, CrossAttention2d, SelfAttention, SelfAttention2d
from .conditioning import (
    AdaGN,
    ConditionedModule,
    ConditionedResidualBlock,
    ConditionedSequential,
    ResidualBlock,
    UnconditionedModule,
    UNet,
)
from .embeddings import FourierFeatures
from .resampling import Downsample, Downsample2d, Upsample, Upsample2d

__all__ = [
    'AdaGN',
    'ConditionedModule',
    'ConditionedResidualBlock',
    'ConditionedSequential',
    'CrossAttention',
    'CrossAttention2d',
    'Denoiser',
    'DenoiserWithVariance',
    'Downsample',
    'Downsample2d',
    'FourierFeatures',
    'ResidualBlock',
    'SelfAttention',
    'SelfAttention2d',
    'SimpleLossDenoiser',
    'UNet',
    'UnconditionedModule',
    'Upsample',
    'Upsample2d',
    'dct',
    'freq_weight_1d',
    'freq_weight_nd',
]
