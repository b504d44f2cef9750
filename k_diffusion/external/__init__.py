"""Networks of other projects as denoisers D(x, sigma).

v-diffusion, guided-diffusion, CompVis, rectified flow, diffusers, EDM.
"""

from .compvis import CompVisDenoiser, CompVisVDenoiser
from .diffusers import from_diffusers
from .discrete import DiscreteEpsDDPMDenoiser, DiscreteVDDPMDenoiser, DiscreteX0DDPMDenoiser
from .edm import EDMDenoiser, KarrasTimeDenoiser
from .flow import FlowDenoiser
from .openai import OpenAIDenoiser, openai_classifier
from .published import Published, load_published
from .recognising import wrap
from .schedule import DiscreteSchedule
from .schedulers import scheduler_sigmas
from .v_diffusion import VDenoiser

__all__ = [
    'CompVisDenoiser',
    'CompVisVDenoiser',
    'DiscreteEpsDDPMDenoiser',
    'DiscreteSchedule',
    'DiscreteVDDPMDenoiser',
    'DiscreteX0DDPMDenoiser',
    'EDMDenoiser',
    'FlowDenoiser',
    'KarrasTimeDenoiser',
    'OpenAIDenoiser',
    'Published',
    'VDenoiser',
    'from_diffusers',
    'load_published',
    'openai_classifier',
    'scheduler_sigmas',
    'wrap',
]
