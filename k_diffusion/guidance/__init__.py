"""Guidance: each of these takes a denoiser and gives one back; no sampler ever hears of it."""
from .apg import adaptive_projected
from .autoguidance import autoguidance
from .cfg import classifier_free
from .clip import clip_guidance, spherical_distance
from .composition import composed
from .gradients import classifier_guidance, loss_guidance
from .inverse import inpainting, posterior_sampling, pseudo_inverse
from .thresholding import dynamic_thresholding, static_thresholding
from .time_travel import time_travel
from .variations import blended_noise, partial_noise
from .views import views

__all__ = ['adaptive_projected', 'autoguidance', 'blended_noise', 'classifier_free', 'classifier_guidance', 'clip_guidance', 'composed',
           'dynamic_thresholding', 'inpainting', 'loss_guidance', 'partial_noise', 'posterior_sampling', 'pseudo_inverse',
           'spherical_distance', 'static_thresholding', 'time_travel', 'views']
