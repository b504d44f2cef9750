"""Make denoisers D(x, sigma) of networks: preconditioning, loss, weighting; and exact denoisers."""

from .base import PreconditionedDenoiser
from .flow_map import FlowMap
from .karras import Denoiser, DenoiserWithVariance, SimpleLossDenoiser
from .scalings import SCALINGS
from .weightings import WEIGHTINGS

__all__ = [
    'SCALINGS',
    'WEIGHTINGS',
    'Denoiser',
    'DenoiserWithVariance',
    'FlowMap',
    'PreconditionedDenoiser',
    'SimpleLossDenoiser',
]
