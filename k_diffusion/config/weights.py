"""Trained weights: a checkpoint or an inference file becomes a denoiser in one call."""

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

    Args:
        path: A .pth checkpoint, a .safetensors file, or the folder of a run (its latest
            checkpoint); or the URL of one (s3://...), which is downloaded and verified first.
        device: The device.
        config: A path or a dict, for a file without a config (the earliest .pth files).
        ema: Load the averaged weights; False loads the raw ones of a .pth.
        verify: Compare the file with the manifest beside it.
        network: An instance of the network, for one passed to training; or 'FILE.py:CLASS', of
            which one is made.
        allow_code: Permission to run that file.

    Returns:
        The denoiser D(x, sigma, **cond), in evaluation mode, without gradients, in float32, with
            its `experiment`; and the filled config.

    Raises:
        ValueError: If the file has no config, is damaged, or does not fit the network.

    Example:
        denoiser, config = K.load_model('runs/demo')
    """
    path = find_checkpoint(path, verify)
    weights, carried = read_weights(path, ema, verify)
    source = config if config is not None else carried
    if source is None:
        raise ValueError(f'{path} has no config; pass the one of its training as config=...')
    experiment = Experiment.open(source)
    if network is not None:
        experiment.take_network(make_network(network, allow_code))
    load_weights(experiment.network, weights, path)
    return experiment.denoiser.to(device).eval().requires_grad_(False), experiment.as_dict()


def read_weights(
    path: str | os.PathLike[str], ema: bool = True, verify: bool = True
) -> tuple[dict[str, Tensor], Any]:
    """Read the weights of the network in a .pth or .safetensors file, and its config or None.

    Args:
        path: The file.
        ema: Read the averaged weights of a .pth.
        verify: Compare the file with the manifest beside it.
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
            f'{path} has no entry {key!r}; path must be a checkpoint from training or a '
            '.safetensors file'
        )
    check_tensors(checkpoint[key], path)
    return dict(checkpoint[key]), _checked_config(checkpoint.get('config'), path)


def _checked_config(config: Any, path: object) -> Any:
    if not isinstance(config, (Mapping, type(None))):
        raise ValueError(
            f'{path} must hold a dict as its config; got {type(config).__name__}. '
            'Use a file that training or convert wrote'
        )
    return config


def find_checkpoint(path: str | os.PathLike[str], verify: bool = True) -> Path:
    """Return a checkpoint file unchanged; for the folder of a run its latest checkpoint.

    Args:
        path: The file or folder, or a URL, which is downloaded.
        verify: Compare a downloaded file with the manifest beside it at the URL.

    Raises:
        ValueError: If the folder has no or several runs.
    """
    if is_url(path):
        return fetch_checkpoint(str(path), verify)
    path = Path(path)
    if not path.is_dir() or path.suffix == '.shards':
        return path
    folders = find_runs(path)
    runs = [run for run in folders if run.pointer_path.exists()] or [
        run for run in folders if run.checkpoints()
    ]
    if len(runs) != 1:
        names = ', '.join(run.name for run in runs) or 'none'
        raise ValueError(
            f'{path} must hold one run; got {len(runs)} ({names}). '
            'Pass the path of a .pth or .safetensors file'
        )
    found_there = runs[0].latest()
    if found_there is None:
        raise ValueError(
            f'the run {runs[0].name!r} in {path} has no checkpoint yet. '
            'Pass the path of a .pth or .safetensors file'
        )
    return found_there
