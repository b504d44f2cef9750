"""Trained weights of our own: a checkpoint or an inference file becomes a denoiser in one call."""
from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..core.files import read_json
from ..core.weights import get_safetensors_metadata, load_safetensors
from ..training import find_runs, load_weights
from ..training.checkpoints.manifest import check_recorded
from ..training.checkpoints.reading import load_state
from .build import make_denoiser_wrapper, make_model
from .load import load_config


def load_model(path: str | os.PathLike[str], device: Any = 'cpu', config: Any = None, ema: bool = True,
               verify: bool = True) -> tuple[nn.Module, dict[str, Any]]:
    """The denoiser D(x, sigma, **cond) of a .pth checkpoint, a .safetensors file or a run's folder, and its filled config.

    The weights are the averaged ones (with `ema` False the raw ones of a .pth), in evaluation mode, without gradients, in
    float32. `config`, a path or a dict, stands in for a file that carries none (the earliest .pth files).
    With `verify` False a file is taken though it is not what the manifest beside it says.

    denoiser, config = K.load_model('runs/demo')
    """
    path = find_checkpoint(path)
    weights, carried = read_weights(path, ema, verify)
    source = config if config is not None else carried
    if source is None:
        raise ValueError(f'{path} carries no config; name the config it was trained with (--config)')
    filled = load_config(source)
    network = make_model(filled)
    load_weights(network, weights, path)
    denoiser = make_denoiser_wrapper(filled)(network)
    return denoiser.to(device).eval().requires_grad_(False), filled


def read_weights(path: str | os.PathLike[str], ema: bool = True,
                 verify: bool = True) -> tuple[dict[str, Tensor], Any]:
    """The network's weights in a .pth or .safetensors file, and the config in it (or None).

    Unless `verify` is False, the file must be what a manifest beside it says was written.
    """
    if Path(path).suffix == '.safetensors':
        if verify:
            check_recorded(Path(path))
        carried = get_safetensors_metadata(path).get('config')
        return load_safetensors(path), None if carried is None else read_json(carried, f'the config inside {path}')
    checkpoint = load_state(path, verify)
    key = 'model_ema' if ema else 'model'
    if not isinstance(checkpoint, Mapping) or key not in checkpoint:
        raise ValueError(f'{path} has no entry {key!r}; give a checkpoint that training wrote or a .safetensors file')
    return dict(checkpoint[key]), checkpoint.get('config')


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """A checkpoint file as it is; for the folder of a run, the latest checkpoint."""
    path = Path(path)
    if not path.is_dir() or path.suffix == '.shards':
        return path
    known = find_runs(path)
    runs = ([run for run in known if run.pointer_path.exists()]
            or [run for run in known if run.checkpoints()])
    if len(runs) != 1:
        found = ', '.join(run.name for run in runs) or 'none'
        raise ValueError(f'{path} is a folder with {len(runs)} runs ({found}); '
                         'give the path of a .pth or .safetensors file')
    found_there = runs[0].latest()
    if found_there is None:
        raise ValueError(f'the run {runs[0].name!r} in {path} has no checkpoint yet; '
                         'give the path of a .pth or .safetensors file')
    return found_there
