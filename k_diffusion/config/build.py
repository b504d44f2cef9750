"""From a config to the objects it describes."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from .. import augmentation, denoisers, models, schedules
from ..core.protocols import Density
from ..models.image_transformer_v1 import round_to_power_of_two as round_to_power_of_two
from .load import sections_of
from .schema import Findings, read_section


def make_model(config: Mapping[str, Any]) -> nn.Module:
    """The network of a config, its weights drawn from torch's global generator."""
    sections = sections_of(config)
    classes = sections.dataset.num_classes
    network: nn.Module = sections.model.build(num_classes=classes + 1 if classes else 0)
    return augmentation.KarrasAugmentWrapper(network) if sections.model.augment_wrapper else network


def make_denoiser_wrapper(config: Mapping[str, Any]) -> Callable[[nn.Module], nn.Module]:
    """What turns the network of a config into its denoiser: a function from the network to D(x, sigma)."""
    model = sections_of(config).model
    if model.loss_config == 'simple':
        if model.has_variance:
            raise ValueError("model.loss_config is 'simple' and model.has_variance is true, and that loss learns no variance; "
                             'set one of them back')
        return lambda inner: denoisers.SimpleLossDenoiser(inner, sigma_data=model.sigma_data, preconditioning=model.preconditioning)
    if model.has_variance:
        return lambda inner: denoisers.DenoiserWithVariance(inner, sigma_data=model.sigma_data, preconditioning=model.preconditioning)
    return lambda inner: denoisers.Denoiser(inner, sigma_data=model.sigma_data, weighting=model.loss_weighting,
                                            scales=model.loss_scales, preconditioning=model.preconditioning)


def make_sample_density(config: Mapping[str, Any]) -> Density:
    """The density of training noise levels from the MODEL section of a config: (shape, device=...) -> sigma."""
    findings = Findings()
    kind = models.MODELS[config.get('type', 'image_v1')]
    model = read_section(kind, config, 'model', findings)
    if model is None:
        raise ValueError('the model section cannot be used: ' + '; '.join(findings.errors))
    section = model.sigma_sample_density
    density = read_section(schedules.DENSITIES[section.get('type', '')], section, 'model.sigma_sample_density', findings)
    if density is None:
        raise ValueError('the model section cannot be used: ' + '; '.join(findings.errors))
    filled: Density = density.filled(model)
    return filled
