"""k-diffusion convert: the averaged weights of a training checkpoint as a .safetensors file for inference."""
from __future__ import annotations

import os
from pathlib import Path

import torch

from ..config import find_checkpoint, load_config, make_model, read_weights
from ..core.weights import save_safetensors
from ..training import load_weights

_DTYPES = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}


def convert(checkpoint: str | os.PathLike[str], out: str | os.PathLike[str] | None = None, dtype: str = 'fp16',
            config: str | None = None, verify: bool = True) -> Path:
    """Writes the EMA weights of a .pth checkpoint, cast to dtype, with the config in the metadata; returns the new path."""
    checkpoint = find_checkpoint(checkpoint)
    if out is not None and Path(out).suffix != '.safetensors':
        raise ValueError(f'-o is {out}; the file written is a .safetensors file and must be named so')
    weights, carried = read_weights(checkpoint, verify=verify)
    source = config if config is not None else carried
    if source is None:
        raise ValueError(f'{checkpoint} carries no config; name the one it was trained with (--config)')
    filled = load_config(source)
    load_weights(make_model(filled), weights, checkpoint)
    path = Path(out) if out is not None else Path(checkpoint).with_suffix('.safetensors')
    if path.resolve() == Path(checkpoint).resolve():
        raise ValueError(f'{path} would overwrite the checkpoint itself; name another file with -o')
    save_safetensors(path, {key: value.to(_DTYPES[dtype]) for key, value in weights.items()}, filled)
    return path
