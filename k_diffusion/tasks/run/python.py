"""Open a run from Python objects: network, data, density, weighting."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ...config import Experiment
from ...config.experiment import make_network
from ...core.arguments import show_value
from ...core.random import derive_seed
from ...data import Dataset, as_dataset, measure_sigma_data
from ...training import Trainer
from .recipe import pick_config
from .settings import TrainSettings

#: In units of sigma_data: the ends of the noise levels, and the mean of their logarithm in
#: training.
LOWEST, HIGHEST, MEAN, STD = 0.004, 160.0, -0.5, 1.2
BATCH_SIZE = 64


def open_experiment(settings: TrainSettings) -> tuple[Experiment, nn.Module | None]:
    """Return the experiment of a run: the config, with Python objects in place of its parts.

    Args:
        settings: The settings of the run.

    Returns:
        The experiment, and the network if it was passed from Python.

    Raises:
        ValueError: The settings cannot be combined.
        TypeError: A setting has the wrong type.
    """
    data, network, name = settings.dataset, settings.network, ''
    if isinstance(network, str):
        name = network
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(settings.seed or 0, 'weights'))
            network = make_network(name, settings.allow_code)
    dataset = None if data is None else as_dataset(data, settings.num_classes)
    source, notes, decoded = settings.config, list[str](), None
    if settings.data is not None:
        source, notes, decoded = pick_config(settings)
    if source is not None:
        experiment = Experiment.open(source, strict=True, changes=settings.changes)
        experiment.notes, experiment.decoded = notes, decoded
        if network is not None:
            experiment.take_network(network, name)
    else:
        if dataset is None or network is None:
            raise ValueError('network and dataset must both be given without a config')
        experiment = Experiment.open(
            _config_of(settings, network, dataset), strict=True, changes=settings.changes
        )
        experiment.take_network(network, name)
    if source is not None and settings.sigma_data is not None:
        experiment.update('model', sigma_data=_sigma_data(settings, dataset))
    if dataset is not None:
        experiment.take_dataset(dataset)
    if settings.density is not None:
        experiment.take_density(settings.density)
    if callable(settings.weighting):
        experiment.take_weighting(settings.weighting)
    elif settings.weighting is not None:
        experiment.update('model', loss_weighting=settings.weighting)
    return experiment, network


def _config_of(settings: TrainSettings, network: nn.Module, dataset: Dataset) -> dict[str, Any]:
    """Return the config of a run without one: noise levels and batch size that suit the data."""
    channels, *size = dataset.image_shape
    sigma_data = _sigma_data(settings, dataset)
    level = {'type': 'lognormal', 'mean': math.log(sigma_data) + MEAN, 'std': STD}
    return {
        'model': {
            'type': 'python',
            'network': type(network).__name__,
            'input_channels': channels,
            'input_size': size,
            'sigma_data': sigma_data,
            'sigma_min': LOWEST * sigma_data,
            'sigma_max': HIGHEST * sigma_data,
            'sigma_sample_density': level,
        },
        'dataset': {'type': 'python', 'num_classes': settings.num_classes},
        'lr_sched': {'type': 'constant' if settings.end_step is None else 'warmup-decay'},
        'ema_sched': {'type': 'power'},
        'training': {'batch_size': min(BATCH_SIZE, len(dataset))},
    }


def _sigma_data(settings: TrainSettings, dataset: Dataset | None) -> float:
    if settings.sigma_data not in (None, 'measure'):
        return float(settings.sigma_data)
    if dataset is None:
        raise ValueError("sigma_data must be a number where no dataset is given; got 'measure'")
    return measure_sigma_data(dataset)


def keep_sigma_data(experiment: Experiment, state: dict[str, Any], settings: TrainSettings) -> None:
    """Take the noise levels from a checkpoint if they follow the data.

    The weights were trained with those levels.

    Args:
        experiment: The experiment of the run, which is updated.
        state: The checkpoint.
        settings: The settings of the run.
    """
    section = (state.get('config') or {}).get('model') or {}
    if settings.config is not None or settings.sigma_data not in (None, 'measure'):
        return
    keys = ('sigma_data', 'sigma_min', 'sigma_max')
    if (
        section.get('type') == 'python'
        and section.get('sigma_data') != experiment.sections.model.sigma_data
    ):
        experiment.update('model', **{key: section[key] for key in keys})


def make_optimizer(settings: TrainSettings, experiment: Experiment, network: nn.Module) -> Any:
    """Return the optimizer from Python, or the one of the config.

    Args:
        settings: Settings with `optimizer`: an optimizer, a function of the parameters, or None.
        experiment: The experiment of the run.
        network: The network in training.

    Raises:
        ValueError: The optimizer has other parameters than those of the network.
    """
    choice = settings.optimizer
    if choice is None:
        return experiment.sections.optimizer.make(network, settings.lr)
    optimizer = (
        choice
        if hasattr(choice, 'param_groups')
        else choice([p for p in network.parameters() if p.requires_grad])
    )
    parameters = {id(p) for group in optimizer.param_groups for p in group['params']}
    if not parameters <= {id(p) for p in network.parameters()}:
        raise ValueError(
            'optimizer must hold parameters of the trained network alone; '
            'give a function of the parameters, optimizer=lambda params: ...'
        )
    return optimizer


def make_schedule(
    settings: TrainSettings, experiment: Experiment, optimizer: Any, end_step: int | None
) -> Any:
    """Return the learning-rate schedule from Python, or the one of the config.

    Args:
        settings: Settings with `lr_schedule`: a schedule, a function of the optimizer, or None.
        experiment: The experiment of the run.
        optimizer: The optimizer.
        end_step: The last step, if there is one.

    Raises:
        ValueError: The schedule is of another optimizer.
    """
    choice = settings.lr_schedule
    if choice is None:
        return experiment.sections.lr_sched.make(optimizer, end_step)
    schedule = choice if hasattr(choice, 'get_last_lr') else choice(optimizer)
    if schedule.optimizer is not optimizer:
        raise ValueError(
            'lr_schedule must be of the optimizer that is given with it; '
            'give a function of it, lr_schedule=lambda optimizer: ...'
        )
    return schedule


class FunctionHook:
    """A function of the trainer as a hook that is called after each step."""

    every = 1

    def __init__(self, function: Callable[[Trainer], Any]) -> None:
        self.function = function

    def __call__(self, trainer: Trainer) -> None:
        self.function(trainer)


def as_hook(hook: Any) -> Any:
    """Return `hook` unchanged, or a plain function as a hook of every step."""
    if not callable(hook):
        raise TypeError(f'hooks must be functions of the trainer; got {show_value(hook)}')
    return hook if hasattr(hook, 'every') else FunctionHook(hook)


def as_function(stop: Any) -> Callable[[], bool] | None:
    """Return `stop` as a function that is True if the run should stop; None stays None."""
    return getattr(stop, 'is_set', stop)
