"""What turns data into what is diffused, and back: pixels as they are, latents of an autoencoder; and what models are told."""
from .caching import cached_latents, statistics
from .latents import DiffusersAutoencoder, Encoder, LatentEncoder, diffusers_autoencoder, own_autoencoder
from .sections import ENCODERS, AutoencoderEncoderConfig, DiffusersEncoderConfig, PixelsConfig

__all__ = ['ENCODERS', 'AutoencoderEncoderConfig', 'DiffusersAutoencoder', 'DiffusersEncoderConfig', 'Encoder', 'LatentEncoder',
           'PixelsConfig', 'cached_latents', 'diffusers_autoencoder', 'own_autoencoder', 'statistics']
