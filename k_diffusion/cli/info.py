"""k-diffusion info: what the model of a config or checkpoint costs: parameters, arithmetic, memory and an estimate of time."""
from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..tasks.info import SHARE, Info, duration, info, number, size
from .entry import Parser, guarded

_EXAMPLE = '''examples:
  k-diffusion info configs/config_icons.json
  k-diffusion info runs/demo --json
  k-diffusion info configs/config_256x256_transformer.json --batch-size 32 --rate 3e14'''


def lines(found: Info) -> list[str]:
    """The same in words."""
    channels, height, width = found.input
    memory = f' ({found.device} has {size(found.memory_bytes)})' if found.memory_bytes else ''
    rate = found.images_per_second
    per_second = f'about {rate:,.0f} images/s' if rate >= 100 else f'about {rate:.2g} images/s'
    rows = [
        ('model', f'{found.type}, pictures of {width}x{height}, {channels} channel{"s" * (channels > 1)}'),
        ('parameters', f'{found.parameters:,}'),
        ('forward', f'{number(found.multiply_adds)} multiply-adds a picture'),
        ('sampling', f'{number(found.sampling_multiply_adds)} multiply-adds a picture'),
        ('activations', f'{size(found.activation_bytes)} a picture, {size(found.activation_bytes * found.batch_size)} a batch of '
                        f'{found.batch_size}, in float32 (about half in bf16)'),
        ('training', f'{size(found.training_bytes)}: weights, gradients, AdamW, average, activations{memory}'),
        ('speed', f'{per_second} of training on {found.device}, at {SHARE:.0%} of {number(found.rate)} operations/s'),
    ]
    if found.training_seconds is not None:
        rows.append(('time', f'about {duration(found.training_seconds)} for the {found.steps:,} steps of the config'))
    else:
        rows.append(('time', f'about {duration(1e6 / found.images_per_second)} for each million pictures'))
    text = [f'{name:13}{value}' for name, value in rows]
    if found.memory_bytes and found.training_bytes > found.memory_bytes:
        text.append(f'It does not fit into the memory of {found.device}: take a smaller batch, --checkpointing or a smaller model.')
    return text


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion info') -> int:
    parser = Parser(prog=prog, description=__doc__, epilog=_EXAMPLE)
    parser.add_argument('source', type=Path, metavar='CONFIG|CHECKPOINT', help='a .json config, a .pth or .safetensors file, or a run')
    parser.add_argument('--batch-size', type=int, help="pictures in a batch (default: the config's)")
    parser.add_argument('--device', help='cpu, cuda, mps (default: the fastest there is)')
    parser.add_argument('--rate', type=float, help='floating-point operations per second to reckon with (default: measured here)')
    parser.add_argument('--json', action='store_true', help='one machine-readable line')
    parser.add_no_verify()
    args = parser.parse_args(argv)

    def work() -> None:
        for key in ('batch_size', 'rate'):
            if getattr(args, key) is not None and getattr(args, key) <= 0:
                raise ValueError(f'--{key.replace("_", "-")} is {getattr(args, key)}; it must be above 0')
        found = info(args.source, args.batch_size, args.device, args.rate, args.verify)
        print(json.dumps(asdict(found)) if args.json else '\n'.join(lines(found)))
    return guarded(prog, work)
