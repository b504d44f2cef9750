"""Networks, denoisers and densities from configs."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from .. import augmentation, denoisers, models, schedules
from ..core.protocols import Density
from ..models.image_transformer_v1 import round_to_power_of_two as round_to_power_of_two
from ..models.section import DenoiserSection
from .load import Sections, sections_of
from .schema import Findings, read_section


def make_model(config: Mapping[str, Any]) -> nn.Module:
    """Build the network of a config, with weights from torch's global generator.

    Args:
        config: The config.
    """
    return build_network(sections_of(config))


def build_network(sections: Sections) -> nn.Module:
    """Build the network of a parsed config, with weights from torch's global generator.

    Args:
        sections: The sections.
    """
    classes = sections.dataset.num_classes
    network: nn.Module = sections.model.build(num_classes=classes + 1 if classes else 0)
    return augmentation.KarrasAugmentWrapper(network) if sections.model.augment_wrapper else network


def make_denoiser_wrapper(config: Mapping[str, Any]) -> Callable[[nn.Module], nn.Module]:
    """Return the function from the network of a config to its denoiser D(x, sigma).

    A config whose model section holds only keys of the denoiser and its loss is accepted too.

    Args:
        config: The config.
    """
    return build_wrapper(_denoiser_section(config))


def build_wrapper(
    model: DenoiserSection, weighting: Callable[[Tensor], Tensor] | None = None
) -> Callable[[nn.Module], nn.Module]:
    """Return the function from a network to its denoiser for a model section.

    Args:
        model: The model section.
        weighting: Replaces the loss weighting of the section.
    """
    make = _choose_denoiser(model, weighting)

    def wrap(inner: nn.Module) -> nn.Module:
        denoiser = make(inner)
        for name in ('sigma_min', 'sigma_max'):  # read by K.sample
            if hasattr(model, name):
                setattr(denoiser, name, getattr(model, name))
        return denoiser

    return wrap


def _choose_denoiser(
    model: DenoiserSection, weighting: Callable[[Tensor], Tensor] | None
) -> Callable[[nn.Module], nn.Module]:
    if model.flow_map:
        return lambda inner: denoisers.FlowMap(
            inner,
            sigma_data=model.sigma_data,
            weighting=weighting or model.loss_weighting,
            preconditioning=model.preconditioning,
        )
    if model.loss_config == 'simple':
        if model.has_variance:
            raise ValueError(
                "model.loss_config 'simple' must not be combined with model.has_variance true, "
                'because that loss learns no variance; change one of them'
            )
        return lambda inner: denoisers.SimpleLossDenoiser(
            inner, sigma_data=model.sigma_data, preconditioning=model.preconditioning
        )
    if model.has_variance:
        return lambda inner: denoisers.DenoiserWithVariance(
            inner, sigma_data=model.sigma_data, preconditioning=model.preconditioning
        )
    return lambda inner: denoisers.Denoiser(
        inner,
        sigma_data=model.sigma_data,
        weighting=weighting or model.loss_weighting,
        scales=model.loss_scales,
        preconditioning=model.preconditioning,
        contrast=model.loss_contrast,
    )


def _denoiser_section(config: Mapping[str, Any]) -> Any:
    """Return the model section of a config, which may lack what only the network needs."""
    model = config.get('model')
    if not isinstance(model, Mapping) or 'input_size' in model:
        return sections_of(config).model
    kind = models.MODELS[model.get('type', 'image_v1')]
    keys = [field.name for field in dataclasses.fields(DenoiserSection)]
    defaults = {
        field.name: field.default for field in dataclasses.fields(kind) if field.name in keys
    }
    return _read(
        DenoiserSection, {key: model[key] for key in keys if key in model}, 'model', defaults
    )


def make_sample_density(config: Mapping[str, Any]) -> Density:
    """Return the density of training noise levels for the MODEL section of a config.

    The density is called as (shape, device=...) -> sigma. The section needs `sigma_sample_density`
    and the keys that it leaves to the model: sigma_data, sigma_min, sigma_max, input_size.

    Args:
        config: The model section.

    Raises:
        ValueError: If a key is missing or wrong.
    """
    if 'input_size' in config and 'input_channels' in config:
        model = _read(models.MODELS[config.get('type', 'image_v1')], config, 'model')
        section = model.sigma_sample_density
    else:
        model, section = (
            types.SimpleNamespace(**{str(key): value for key, value in config.items()}),
            config.get('sigma_sample_density'),
        )
    if not isinstance(section, Mapping):
        raise ValueError(
            f'model.sigma_sample_density must be an object such as {{"type": "lognormal", ...}}; '
            f'got {section!r}'
        )
    density = _read(
        schedules.DENSITIES[section.get('type', '')], section, 'model.sigma_sample_density'
    )
    try:
        complete: Density = density.fill_from(model)
        return complete
    except AttributeError as error:
        raise ValueError(
            f'model.{error.name} must be given, because model.sigma_sample_density leaves it to '
            'the '
            'model'
        ) from None
    except (TypeError, ValueError) as error:
        raise ValueError(
            f'model.sigma_sample_density cannot be made from the keys of the model: {error}'
        ) from None


def _read(
    kind: type, section: Mapping[str, Any], path: str, defaults: Mapping[str, Any] | None = None
) -> Any:
    findings = Findings()
    section_object = read_section(kind, section, path, findings, defaults)
    if section_object is None:
        raise ValueError('the model section cannot be used: ' + '; '.join(findings.errors))
    return section_object
