"""Trained weights of our own: a checkpoint or an inference file becomes a denoiser in one call."""
from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..core.files import read_json
from ..core.weights import get_safetensors_metadata, load_safetensors
from ..training import RunFolder, load_weights
from ..training.checkpoint import load_state
from .build import make_denoiser_wrapper, make_model
from .load import load_config


def load_model(path: str | os.PathLike[str], device: Any = 'cpu', config: Any = None, ema: bool = True,
               ) -> tuple[nn.Module, dict[str, Any]]:
    """The denoiser D(x, sigma, **cond) of a .pth checkpoint, a .safetensors file or a run's folder, and its filled config.

    The weights are the averaged ones (with `ema` False the raw ones of a .pth), in evaluation mode, without gradients, in
    float32. `config`, a path or a dict, stands in for a file that carries none (the earliest .pth files).

    denoiser, config = K.load_model('runs/demo')
    """
    path = find_checkpoint(path)
    weights, carried = read_weights(path, ema)
    source = config if config is not None else carried
    if source is None:
        raise ValueError(f'{path} carries no config; name the config it was trained with (--config)')
    filled = load_config(source)
    network = make_model(filled)
    load_weights(network, weights, path)
    denoiser = make_denoiser_wrapper(filled)(network)
    for bound in ('sigma_min', 'sigma_max'):    # which K.sample looks for
        setattr(denoiser, bound, filled['model'][bound])
    return denoiser.to(device).eval().requires_grad_(False), filled


def read_weights(path: str | os.PathLike[str], ema: bool = True) -> tuple[dict[str, Tensor], Any]:
    """The network's weights in a .pth or .safetensors file, and the config that travels with them (or None)."""
    if Path(path).suffix == '.safetensors':
        carried = get_safetensors_metadata(path).get('config')
        return load_safetensors(path), None if carried is None else read_json(carried, f'the config inside {path}')
    checkpoint = load_state(path)
    key = 'model_ema' if ema else 'model'
    if not isinstance(checkpoint, Mapping) or key not in checkpoint:
        raise ValueError(f'{path} has no entry {key!r}; give a checkpoint that training wrote or a .safetensors file')
    return dict(checkpoint[key]), checkpoint.get('config')


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """A checkpoint file as it is; for the folder of a run, the latest checkpoint that its state file names, verified where on record."""
    path = Path(path)
    if not path.is_dir() or path.suffix == '.shards':
        return path
    states = sorted(path.glob('*_state.json'))
    if len(states) != 1:
        found = ', '.join(state.name for state in states) or 'none'
        raise ValueError(f'{path} is a folder with {len(states)} runs ({found}); give the path of a .pth or .safetensors file')
    state = read_json(states[0].read_text(), str(states[0]))
    if not isinstance(state, Mapping) or not isinstance(state.get('latest_checkpoint'), str):
        raise ValueError(f'{states[0]} names no checkpoint; give the path of a .pth or .safetensors file')
    name = Path(state['latest_checkpoint']).name
    record = RunFolder(path, states[0].name.removesuffix('_state.json')).manifest.read().get(name)
    if record is not None and (fault := record.fault(path)):
        raise ValueError(f'{fault}; `k-diffusion checkpoints {path}` lists those that are whole')
    return path / name
