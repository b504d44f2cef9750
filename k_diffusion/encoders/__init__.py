"""Encoders: latents of images and back, and the conditions of models."""

from .caching import cached_latents, statistics
from .conditions import (
    CONDITIONS,
    Condition,
    ConditionConfig,
    draw_condition_masks,
    prepare_conditions,
)
from .latents import (
    DiffusersAutoencoder,
    Encoder,
    LatentEncoder,
    diffusers_autoencoder,
    own_autoencoder,
)
from .sections import ENCODERS, AutoencoderEncoderConfig, DiffusersEncoderConfig, PixelsConfig
from .texts import TextFeatures

__all__ = [
    'CONDITIONS',
    'ENCODERS',
    'AutoencoderEncoderConfig',
    'Condition',
    'ConditionConfig',
    'DiffusersAutoencoder',
    'DiffusersEncoderConfig',
    'Encoder',
    'LatentEncoder',
    'PixelsConfig',
    'TextFeatures',
    'cached_latents',
    'diffusers_autoencoder',
    'draw_condition_masks',
    'own_autoencoder',
    'prepare_conditions',
    'statistics',
]
