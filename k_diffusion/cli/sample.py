"""k-diffusion sample: images from a trained model."""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ..generation import BETWEEN, SamplingConfig
from ..sampling import SAMPLERS
from ..tasks.sample import sample
from .entry import Parser
from .output import drawn_by

_EXAMPLE = '''examples:
  k-diffusion sample --checkpoint runs/demo -n 64 --seed 1
  k-diffusion sample --checkpoint model.safetensors -n 16 --classes 3,5 --guidance 1.5 --sampler heun --steps 30'''


def _class_words(text: str) -> list[int | str]:
    words = [word.strip() for word in text.split(',')]
    return [int(word) if word.lstrip('-').isdecimal() else word for word in words]


def _levels(text: str) -> tuple[float, float]:
    try:
        low, high = text.split(',')
        return float(low), float(high)
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is no pair of noise levels such as 0.2,2') from None


def _parser(prog: str, defaults: dict[str, Any]) -> Parser:
    parser = Parser(prog=prog, description=__doc__, epilog=_EXAMPLE)
    add = parser.add_argument
    add('--checkpoint', required=True, help="a .pth or .safetensors file, or a run's folder (its latest checkpoint)")
    add('--config', help='the config, where the checkpoint carries none')
    add('-n', type=int, default=64, help='how many images (default: 64)')
    add('--batch-size', type=int, default=64, help='how many at a time; changes no image (default: 64)')
    usual = SamplingConfig()
    add('--steps', type=int, help=f"how many steps the sampler takes (default: {defaults.get('steps', f'the config, else {usual.steps}')})")
    add('--sampler', help=f"the sampler (default: {defaults.get('sampler', f'the config, else {usual.sampler}')}): " + ', '.join(SAMPLERS))
    add('--schedule', help=f"the spacing of noise levels (default: the config's, else {usual.schedule}): " + ', '.join(BETWEEN))
    add('--sigma-min', type=float, help="the least noise level before 0 (default: the config's)")
    add('--sigma-max', type=float, help="the noise level to start from (default: the config's)")
    add('--seed', type=int, default=0, help='image i is drawn from (seed, i) alone (default: 0)')
    add('--classes', type=_class_words, metavar='3,cat', help='classes in turn, by number or name (default: each class in turn)')
    add('--guidance', type=float, help="classifier-free guidance scale (default: the config's, else 1, which is none)")
    add('--guidance-interval', type=_levels, metavar='LOW,HIGH', help="the noise levels it acts at (default: the config's, else all)")
    add('--cond', action='append', default=[], metavar='TYPE=VALUE', help='a condition of the model: text=WORDS, embeddings=ROW, '
        'super-resolution=PICTURE, inpainting=PICTURE[,TOP,BOTTOM,LEFT,RIGHT]; several serve in turn')
    add('--out', help='folder to write to (default: samples, samples-2, ...)')
    add('--overwrite', action='store_true', help='replace the samples that are in --out already')
    add('--prefix', help='write {prefix}_00000.png ... instead of a folder (default: %(default)s)')
    add('--device', help='cpu, cuda, mps (default: the fastest there is)')
    add('--raw', dest='ema', action='store_false', help='the raw weights of a .pth, not the averaged ones')
    parser.add_no_verify()
    add('--json', action='store_true', help='one machine-readable line on stdout')
    parser.set_defaults(**defaults)
    return parser


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion sample', **defaults: Any) -> int:
    """The command; `defaults` are those of the door it is called through."""
    return drawn_by(_parser(prog, defaults), sample, argv)
