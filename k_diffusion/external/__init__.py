"""Networks of other families as denoisers D(x, sigma): v-diffusion, OpenAI's guided-diffusion, CompVis' latent diffusion."""
from .compvis import CompVisDenoiser, CompVisVDenoiser
from .discrete import DiscreteEpsDDPMDenoiser, DiscreteVDDPMDenoiser
from .openai import OpenAIDenoiser
from .schedule import DiscreteSchedule
from .v_diffusion import VDenoiser

__all__ = ['CompVisDenoiser', 'CompVisVDenoiser', 'DiscreteEpsDDPMDenoiser', 'DiscreteSchedule', 'DiscreteVDDPMDenoiser',
           'OpenAIDenoiser', 'VDenoiser']
