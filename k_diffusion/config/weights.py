"""Trained weights of our own: a checkpoint or an inference file becomes a denoiser in one call."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..core.files import read_json
from ..core.remote import is_url
from ..core.weights import get_safetensors_metadata, load_safetensors
from ..training import find_runs, load_weights
from ..training.checkpoints.manifest import check_recorded
from ..training.checkpoints.reading import check_tensors, load_state
from ..training.checkpoints.remote import fetch_checkpoint
from .experiment import Experiment, make_network


def load_model(
    path: str | os.PathLike[str],
    device: Any = 'cpu',
    config: Any = None,
    ema: bool = True,
    verify: bool = True,
    network: nn.Module | str | None = None,
    allow_code: bool = False,
) -> tuple[nn.Module, dict[str, Any]]:
    """Load a trained denoiser.

    denoiser, config = K.load_model('runs/demo')

    Args:
        path: A .pth checkpoint, a .safetensors file, or the folder of a run (its latest
            checkpoint); or the URL of one (s3://...), which is fetched and verified first.
        device: Where it is to be.
        config: A path or a dict, for a file that carries none (the earliest .pth files).
        ema: The averaged weights; False takes the raw ones of a .pth.
        verify: Refuse a file that is not what the manifest beside it says.
        network: An instance of the network, where it was given to training; it takes the weights.
            Or 'FILE.py:CLASS', of which one is made.
        allow_code: Let that file run.

    Returns:
        The denoiser D(x, sigma, **cond), in evaluation mode, without gradients, in float32, with
            its `experiment`; and the filled config.
    """
    path = find_checkpoint(path, verify)
    weights, carried = read_weights(path, ema, verify)
    source = config if config is not None else carried
    if source is None:
        raise ValueError(
            f'{path} carries no config; pass the one that it was trained with as config=...'
        )
    experiment = Experiment.open(source)
    if network is not None:
        experiment.take_network(make_network(network, allow_code))
    load_weights(experiment.network, weights, path)
    return experiment.denoiser.to(device).eval().requires_grad_(False), experiment.as_dict()


def read_weights(
    path: str | os.PathLike[str], ema: bool = True, verify: bool = True
) -> tuple[dict[str, Tensor], Any]:
    """The network's weights in a .pth or .safetensors file, and the config in it (or None).

    Unless `verify` is False, the file must be what a manifest beside it says was written.
    """
    path = fetch_checkpoint(str(path), verify) if is_url(path) else path
    if Path(path).suffix == '.safetensors':
        if verify:
            check_recorded(Path(path))
        carried = get_safetensors_metadata(path).get('config')
        config = None if carried is None else read_json(carried, f'the config inside {path}')
        return load_safetensors(path), _checked_config(config, path)
    checkpoint = load_state(path, verify)
    key = 'model_ema' if ema else 'model'
    if not isinstance(checkpoint, Mapping) or key not in checkpoint:
        raise ValueError(
            f'{path} has no entry {key!r}; give a checkpoint that training wrote or a '
            '.safetensors file'
        )
    check_tensors(checkpoint[key], path)
    return dict(checkpoint[key]), _checked_config(checkpoint.get('config'), path)


def _checked_config(config: Any, path: object) -> Any:
    if not isinstance(config, (Mapping, type(None))):
        raise ValueError(
            f'{path} holds {type(config).__name__} as its config, which must be a dict; '
            'use a file that training or convert wrote'
        )
    return config


def find_checkpoint(path: str | os.PathLike[str], verify: bool = True) -> Path:
    """Return a checkpoint file as it is; for the folder of a run, the latest checkpoint.

    Of a URL it is a copy on this machine, which was compared with the manifest beside it there
    (unless `verify` is False).
    """
    if is_url(path):
        return fetch_checkpoint(str(path), verify)
    path = Path(path)
    if not path.is_dir() or path.suffix == '.shards':
        return path
    known = find_runs(path)
    runs = [run for run in known if run.pointer_path.exists()] or [
        run for run in known if run.checkpoints()
    ]
    if len(runs) != 1:
        found = ', '.join(run.name for run in runs) or 'none'
        raise ValueError(
            f'{path} is a folder with {len(runs)} runs ({found}); '
            'give the path of a .pth or .safetensors file'
        )
    found_there = runs[0].latest()
    if found_there is None:
        raise ValueError(
            f'the run {runs[0].name!r} in {path} has no checkpoint yet; '
            'give the path of a .pth or .safetensors file'
        )
    return found_there
