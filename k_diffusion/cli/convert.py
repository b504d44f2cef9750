"""k-diffusion convert: the averaged weights of a training checkpoint as a .safetensors file for inference."""
from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from ..config import find_checkpoint, load_config, make_model, read_weights
from ..core.names import escape_name
from ..core.weights import save_safetensors
from ..training import load_weights
from .entry import Parser, guarded

_DTYPES = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}
_EXAMPLE = 'example:\n  k-diffusion convert runs/demo/demo_00001450.pth -o demo.safetensors --dtype fp16'


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


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion convert') -> int:
    parser = Parser(prog=prog, description=__doc__, epilog=_EXAMPLE)
    parser.add_argument('checkpoint', help='the .pth checkpoint')
    parser.add_argument('--config', help='its config, where the checkpoint carries none')
    parser.add_argument('-o', '--output', '--out', dest='out',
                        help='the file to write (default: the checkpoint with the ending .safetensors)')
    parser.add_argument('--dtype', choices=tuple(_DTYPES), default='fp16', help='the type of the weights (default: fp16)')
    parser.add_no_verify()
    args = parser.parse_args(argv)

    def work() -> None:
        print(escape_name(convert(args.checkpoint, args.out, args.dtype, args.config, args.verify)))
    return guarded(prog, work)
