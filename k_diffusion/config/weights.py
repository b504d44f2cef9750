"""Trained weights of our own: a checkpoint or an inference file becomes a denoiser in one call."""
from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..core.weights import load_checkpoint, load_safetensors, load_safetensors_config
from ..training import load_weights
from .build import make_denoiser_wrapper, make_model
from .load import load_config


def load_model(path: str | os.PathLike[str], device: Any = 'cpu', config: Any = None, ema: bool = True,
               ) -> tuple[nn.Module, dict[str, Any]]:
    """The denoiser D(x, sigma, **cond) of a .pth checkpoint or a .safetensors file, and its filled config.

    The weights are the averaged ones (with `ema` False the raw ones of a .pth), in evaluation mode, without gradients, in
    float32. `config`, a path or a dict, stands in for a file that carries none (the earliest .pth files).

    denoiser, config = K.load_model('runs/demo/demo_00001500.pth')
    """
    weights, carried = read_weights(path, ema)
    source = config if config is not None else carried
    if source is None:
        raise ValueError(f'{path} carries no config; name the config it was trained with (--config)')
    filled = load_config(source)
    network = make_model(filled)
    load_weights(network, weights, path)
    denoiser = make_denoiser_wrapper(filled)(network)
    return denoiser.to(device).eval().requires_grad_(False), filled


def read_weights(path: str | os.PathLike[str], ema: bool = True) -> tuple[dict[str, Tensor], Any]:
    """The network's weights in a .pth or .safetensors file, and the config that travels with them (or None)."""
    if Path(path).suffix == '.safetensors':
        return load_safetensors(path), load_safetensors_config(path)
    checkpoint = load_checkpoint(path)
    key = 'model_ema' if ema else 'model'
    if not isinstance(checkpoint, Mapping) or key not in checkpoint:
        raise ValueError(f'{path} has no entry {key!r}; give a checkpoint that training wrote or a .safetensors file')
    return dict(checkpoint[key]), checkpoint.get('config')
