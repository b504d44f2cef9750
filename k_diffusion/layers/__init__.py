"""What networks are built from. (The denoisers are shown here too, where the original has them.)"""
from ..core.spectral import dct, freq_weight_1d, freq_weight_nd
from ..denoisers import Denoiser, DenoiserWithVariance, SimpleLossDenoiser
from .attention import CrossAttention2d, SelfAttention2d
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
from .resampling import Downsample2d, Upsample2d

__all__ = [
    'AdaGN', 'ConditionedModule', 'ConditionedResidualBlock', 'ConditionedSequential', 'CrossAttention2d', 'Denoiser',
    'DenoiserWithVariance', 'Downsample2d', 'FourierFeatures', 'ResidualBlock', 'SelfAttention2d', 'SimpleLossDenoiser', 'UNet',
    'UnconditionedModule', 'Upsample2d', 'dct', 'freq_weight_1d', 'freq_weight_nd',
]
