"""k-diffusion info: parameters, arithmetic, memory and an estimate of time of the model of a config or checkpoint."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from ..tasks.info import SHARE, Info, format_bytes, format_count, format_seconds, info
from .flags import run_command

_EXAMPLE = '''examples:
  k-diffusion info config_icons
  k-diffusion info runs/demo --json
  k-diffusion info config_256_transformer --batch-size 32 --rate 3e14'''


def _show(costs: Info) -> str:
    channels, height, width = costs.input
    memory = f' ({costs.device} has {format_bytes(costs.memory_bytes)})' if costs.memory_bytes else ''
    rate = costs.images_per_second
    per_second = f'about {rate:,.0f} images/s' if rate >= 100 else f'about {rate:.2g} images/s'
    rows = [
        ('model', f'{costs.type}, pictures of {width}x{height}, {channels} channel{"s" * (channels > 1)}'),
        ('parameters', f'{costs.parameters:,}'),
        ('forward', f'{format_count(costs.multiply_adds)} multiply-adds a picture'),
        ('sampling', f'{format_count(costs.sampling_multiply_adds)} multiply-adds a picture'),
        ('activations', f'{format_bytes(costs.activation_bytes)} a picture, {format_bytes(costs.activation_bytes * costs.batch_size)} a batch of '
                        f'{costs.batch_size}, in float32 (about half in bf16)'),
        ('training', f'{format_bytes(costs.training_bytes)}: weights, gradients, AdamW, average, activations{memory}'),
        ('speed', f'{per_second} of training on {costs.device}, at {SHARE:.0%} of {format_count(costs.rate)} operations/s'),
    ]
    if costs.training_seconds is not None:
        rows.append(('time', f'about {format_seconds(costs.training_seconds)} for the {costs.steps:,} steps of the config'))
    else:
        rows.append(('time', f'about {format_seconds(1e6 / costs.images_per_second)} for each million pictures'))
    text = [f'{name:13}{value}' for name, value in rows]
    if costs.memory_bytes and costs.training_bytes > costs.memory_bytes:
        text.append(f'It does not fit into the memory of {costs.device}: take a smaller batch, --checkpointing or a smaller model.')
    return '\n'.join(text)


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion info') -> int:
    """Run the command."""
    return run_command(prog, info, _show, about=__doc__, example=_EXAMPLE, as_json=asdict, argv=argv)
