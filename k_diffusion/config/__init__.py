"""Configs: reading and checking them, and building or loading the models they describe."""

from .autoencoders import AutoencoderSections, read_autoencoder_config
from .build import make_denoiser_wrapper, make_model, make_sample_density, round_to_power_of_two
from .experiment import Experiment
from .growing import grow_model
from .load import (
    Sections,
    find_config,
    load_config,
    read_sections,
    sections_of,
    shipped_config,
    shipped_configs,
)
from .weights import find_checkpoint, load_model, read_weights

__all__ = [
    'AutoencoderSections',
    'Experiment',
    'Sections',
    'find_checkpoint',
    'find_config',
    'grow_model',
    'load_config',
    'load_model',
    'make_denoiser_wrapper',
    'make_model',
    'make_sample_density',
    'read_autoencoder_config',
    'read_sections',
    'read_weights',
    'round_to_power_of_two',
    'sections_of',
    'shipped_config',
    'shipped_configs',
]
