"""Guidance: functions that take a denoiser and return one, independent of the sampler."""

from .apg import adaptive_projected
from .autoguidance import autoguidance
from .cfg import classifier_free
from .cfg_zero import cfg_zero_star
from .clip import clip_guidance, spherical_distance
from .composition import composed
from .flow_map import guide_flow_map
from .frequency import frequency_decoupled
from .gradients import classifier_guidance, loss_guidance
from .inverse import inpainting, posterior_sampling, pseudo_inverse
from .levels import detail, epsilon_scaling, interval_of_first_steps
from .tangential import tangential_damping
from .thresholding import dynamic_thresholding, static_thresholding
from .time_travel import time_travel
from .variations import blended_noise, partial_noise
from .views import views

__all__ = [
    'adaptive_projected',
    'autoguidance',
    'blended_noise',
    'cfg_zero_star',
    'classifier_free',
    'classifier_guidance',
    'clip_guidance',
    'composed',
    'detail',
    'dynamic_thresholding',
    'epsilon_scaling',
    'frequency_decoupled',
    'guide_flow_map',
    'inpainting',
    'interval_of_first_steps',
    'loss_guidance',
    'partial_noise',
    'posterior_sampling',
    'pseudo_inverse',
    'spherical_distance',
    'static_thresholding',
    'tangential_damping',
    'time_travel',
    'views',
]
