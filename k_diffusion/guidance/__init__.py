"""Guidance: each of these takes a denoiser and gives one back; no sampler ever hears of it."""
from .cfg import classifier_free

__all__ = ['classifier_free']
