"""What makes a denoiser D(x, sigma) of a network: preconditioning, loss, weighting; and
denoisers known in closed form.
"""

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
