"""k-diffusion config: the config that an inference file (.safetensors) or a checkpoint (.pth) carries, as a .json file."""
from __future__ import annotations

import os
from pathlib import Path

from ..config import read_weights
from ..core.files import write_json
from ..core.weights import load_safetensors_config


def config(checkpoint: str | os.PathLike[str], out: str | os.PathLike[str] | None = None,
           verify: bool = True) -> Path:
    """Writes the config inside a .safetensors or .pth file as JSON and returns the path of what it wrote."""
    if Path(checkpoint).suffix == '.safetensors':
        found = load_safetensors_config(checkpoint)
    else:
        found = read_weights(checkpoint, verify=verify)[1]
    if found is None:
        raise ValueError(f'{checkpoint} carries no config')
    path = Path(out) if out is not None else Path(checkpoint).with_suffix('.json')
    write_json(path, found)
    return path
