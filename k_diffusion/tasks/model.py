"""Open the trained model of a task and its sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from ..config import Experiment, load_model
from ..core.devices import choose_device
from ..core.memory import keep_freed_memory
from ..core.python_files import is_reference, load_reference
from ..core.registry import unknown
from ..core.settings import setting
from ..generation import split_title
from ..sampling import SAMPLERS, find_sampler


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Settings that the tasks on a trained model share, besides its `checkpoint`.

    From Python `network` may also be an instance; `ema` False uses the raw weights, `verify` False
    accepts a checkpoint that differs from its manifest; `show` False turns the progress bar off.
    """

    config: Any = setting(None, 'the config, if the checkpoint has none')
    network: nn.Module | str | None = setting(
        None,
        'FILE.py:CLASS, your own network that the model was trained with; runs the '
        'file (see allow_code)',
        parse=str,
    )
    allow_code: bool = setting(
        False,
        'run the Python files named in settings and in a "custom" data set, '
        'and the code in a TorchScript file',
    )
    device: str | None = setting(None, 'cpu, cuda, mps (default: the fastest available)')
    ema: bool = setting(True, 'the raw weights of a .pth, not the averaged ones', flags=('--raw',))
    verify: bool = setting(True, 'accept a checkpoint that differs from its manifest')
    show: bool = setting(True)


def open_model(
    settings: Any, device: torch.device | None = None
) -> tuple[nn.Module, Experiment, torch.device]:
    """Load the model that the settings of a task name.

    Args:
        settings: ModelSettings with a checkpoint.
        device: The device of the model; None: the device of the settings.

    Returns:
        The denoiser, its experiment and its device.
    """
    device = choose_device(settings.device) if device is None else device
    if device.type == 'cpu':
        keep_freed_memory()
    denoiser, _ = load_model(
        settings.checkpoint,
        device,
        settings.config,
        settings.ema,
        settings.verify,
        settings.network,
        settings.allow_code,
    )
    return denoiser, cast(Experiment, denoiser.experiment), device


def refuse_flow_map(denoiser: Any, checkpoint: Any) -> None:
    """Raise an error for a flow map, if a task requires a denoiser.

    Args:
        denoiser: The model.
        checkpoint: Its checkpoint, for the message.

    Raises:
        ValueError: The model is a flow map.
    """
    if getattr(denoiser, 'flow_map', False):
        raise ValueError(
            f'checkpoint must be of a denoiser; {checkpoint} is a flow map: give the one that it '
            'was distilled from'
        )


def find_sampler_problem(sampler: Any, *also: str) -> str | None:
    """Return the problem of the name `sampler`, or None.

    Functions, 'FILE.py:FUNCTION', None and the names `also` are allowed.
    """
    name, _ = split_title(sampler)
    if sampler is None or sampler in also or callable(sampler) or is_reference(sampler):
        return None
    if isinstance(name, str) and name.removeprefix('sample_') in SAMPLERS:
        return None
    return f'sampler must be the name of a sampler; {unknown("sampler", str(sampler), SAMPLERS)}'


def load_sampler(sampler: Any, allow_code: bool) -> tuple[str | None, Any]:
    """Return a sampler of this package as its name and None, another one as None and the function.

    Args:
        sampler: A name, a function, 'FILE.py:FUNCTION' or None.
        allow_code: Allow FILE.py to run.
    """
    if is_reference(sampler):
        sampler = load_reference(sampler, 'sampler', allow_code)
    if sampler is None or isinstance(sampler, str):
        return sampler, None
    entry = find_sampler(sampler)
    is_listed = entry.name in SAMPLERS and SAMPLERS[entry.name] is entry
    return (entry.name, None) if is_listed else (None, sampler)
