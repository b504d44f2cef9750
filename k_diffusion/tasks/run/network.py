"""Build the network of a training run: first weights, device and memory format."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from ...config import Experiment, read_weights
from ...config.build import build_network
from ...config.growing import inherit_weights
from ...config.load import Sections
from ...core.machine import memory_bytes
from ...core.modules import n_params
from ...core.random import derive_seed
from ...training import load_weights
from .distilling import add_missing_inputs
from .settings import TrainSettings


def make_network(
    settings: TrainSettings,
    experiment: Experiment,
    seed: int,
    device: torch.device,
    fresh: bool,
    teacher: nn.Module | None = None,
) -> list[str]:
    """Make the network of a run with its first weights, on its device.

    The weights come from the seed, an inference file, a smaller network (grow) or the teacher, or
    are those of a network from Python. A run that continues loads its weights from its checkpoint
    later, so the file that it was grown from may be gone by then.

    Args:
        settings: The settings of the run.
        experiment: The config with its parts; its network is changed in place.
        seed: The seed of the first weights.
        device: The device that the network moves to.
        fresh: Whether the run starts anew, without a checkpoint.
        teacher: The teacher of a distillation, whose weights a new run starts from.

    Returns:
        The names of the parameters that growing added.
    """
    new_parameters: list[str] = []
    sections = experiment.sections
    if settings.network is None:
        _check_memory(sections, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, 'weights'))
        network = experiment.network
        if settings.grow and fresh:
            new_parameters = inherit_weights(
                network, settings.grow, settings.grow_config, settings.verify
            )
        elif teacher is not None and fresh:
            weights = cast(nn.Module, teacher.inner_model).state_dict()
            section = experiment.sections.distillation
            load_weights(network, add_missing_inputs(network, weights), section.teacher)
    if settings.resume_inference:
        weights, _ = read_weights(settings.resume_inference, verify=settings.verify)
        load_weights(network, weights, settings.resume_inference)
    network.to(device, memory_format=choose_memory_format(sections))  # type: ignore[call-overload]
    return new_parameters


def _check_memory(sections: Sections, device: torch.device) -> None:
    """Raise a ValueError if weights, gradients, moments and average exceed the device's memory."""
    with torch.device('meta'):
        parameters = n_params(build_network(sections))
    size, available = 5 * 4 * parameters, memory_bytes(device)
    if available is not None and size > available:
        raise ValueError(
            f'model must fit into the {available / 2**30:,.0f} GiB of {device.type}; training its '
            f'{parameters:,} parameters takes {size / 2**30:,.0f} GiB without activations. Make '
            'it smaller (k-diffusion info reports the cost of a config)'
        )


def project_after_steps(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Project the weights of a network with `proj_` to its constraint after each step.

    Args:
        network: The network, or a denoiser of it.
        optimizer: The optimizer, which gets the hook.
    """
    project = getattr(getattr(network, 'inner_model', network), 'proj_', None)
    if project is not None:
        optimizer.register_step_post_hook(lambda *_: project())


def count_parameters(network: nn.Module, names: list[str]) -> int:
    """Return the number of weights in the parameters of a network that names lists."""
    parameters = dict(network.named_parameters())
    return sum(parameters[name].numel() for name in names)


def choose_memory_format(sections: Sections) -> torch.memory_format:
    """Return the memory format that sections asks the network to be trained in."""
    convolutional = sections.model.type.startswith('image_v') and sections.model.dims == 2
    use_channels_last = sections.training.channels_last and convolutional
    return torch.channels_last if use_channels_last else torch.contiguous_format
