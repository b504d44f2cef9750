"""k-diffusion likelihood: how many bits per dimension pictures take under a trained model."""
from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence

from ..tasks.likelihood import LikelihoodSettings, likelihood
from ..tasks.reference import DATASET_WORDS
from .entry import Parser, guarded

_EXAMPLE = '''examples:
  k-diffusion likelihood --checkpoint runs/demo -n 1000
  k-diffusion likelihood --checkpoint model.safetensors --dataset pictures/held_out -n 500 --probes 4
  torchrun --nproc-per-node 2 -m k_diffusion.cli likelihood --checkpoint runs/demo -n 1000

The same command again goes on where it was stopped.'''


def _parser(prog: str) -> Parser:
    parser = Parser(prog=prog, description=__doc__, epilog=_EXAMPLE)
    add = parser.add_argument
    add('--checkpoint', required=True, help="a .pth or .safetensors file, or a run's folder (its latest checkpoint)")
    add('--dataset', help=f'whose pictures: {DATASET_WORDS}')
    add('-n', type=int, default=1000, help='how many pictures, drawn from the seed (default: 1000)')
    add('--steps', type=int, default=32, help='steps of the solver, each of 4 model calls (default: 32)')
    add('--probes', type=int, default=1, help='probes of the trace per model call (default: 1)')
    add('--exact', action='store_true', help='the exact trace, which takes as many backward passes as a picture has elements')
    add('--points', type=int, default=1, help='dequantised points per picture; more tighten the bound (default: 1)')
    add('--sigma-min', type=float, help="the density is that of data with so much noise (default: the config's)")
    add('--unconditional', action='store_true', help='do not tell the model the classes')
    add('--out', help='folder to write to (default: likelihood beside the checkpoint)')
    add('--config', help='the config, where the checkpoint carries none')
    add('--batch-size', type=int, default=64, help='how many pictures at a time (default: 64)')
    add('--seed', type=int, default=0, help='what is drawn for a picture depends on it and the picture alone (default: 0)')
    add('--device', help='cpu, cuda, mps (default: the fastest there is)')
    add('--raw', dest='ema', action='store_false', help='the raw weights of a .pth, not the averaged ones')
    add('--allow-code', action='store_true', help='let a "custom" dataset run the Python file that the config names')
    parser.add_no_verify()
    add('--json', action='store_true', help='one machine-readable line on stdout')
    return parser


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion likelihood') -> int:
    args = vars(_parser(prog).parse_args(argv))
    as_json = args.pop('json')

    def work() -> None:
        found = likelihood(LikelihoodSettings(**args))
        if int(os.environ.get('RANK', 0)):
            return
        if as_json:
            print(json.dumps({'bits_per_dim': found.mean, 'stderr': None if math.isnan(found.stderr) else found.stderr,
                              'n': len(found.bits), 'csv': str(found.csv), 'histogram': str(found.histogram)}))
        else:
            print(f'{found.mean:.4f} +- {found.stderr:.4f} bits per dimension over {len(found.bits):,} pictures\n'
                  f'each picture: {found.csv}, histogram: {found.histogram}')
    return guarded(prog, work)
