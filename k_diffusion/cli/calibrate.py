"""k-diffusion calibrate: a sampler is fitted to a model, so that few steps give what many would."""
from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from ..core.names import escape_name
from ..sampling import BASES
from ..tasks.calibrate import calibrate_model
from .entry import Parser, guarded
from .sample import _class_words, _levels

_EXAMPLE = '''example:
  k-diffusion calibrate --checkpoint runs/demo --steps 5,8,10
  k-diffusion sample --checkpoint runs/demo --steps 8

`sample` then takes the calibrated sampler by itself where the number of steps and the guidance are those of one.'''


def _integers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(',')]
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is no list of whole numbers such as 3,5') from None


def _parser(prog: str) -> Parser:
    parser = Parser(prog=prog, description=__doc__, epilog=_EXAMPLE)
    add = parser.add_argument
    add('--checkpoint', required=True, help="a .pth or .safetensors file, or a run's folder (its latest checkpoint)")
    add('--steps', type=_integers, default=[5, 8, 10], metavar='5,8,10', help='numbers of model calls (default: 5,8,10)')
    add('--noises', type=int, default=16, help='how many noises it is fitted to; as many again are held out to choose by (default: 16)')
    add('--sigma-min', type=float, help="where the converged runs take their last step, to 0 (default: the config's)")
    add('--sigma-max', type=float, help="the noise level to start from (default: the config's)")
    add('--classes', type=_class_words, metavar='3,cat', help='classes in turn, by number or name (default: each class in turn)')
    add('--guidance', type=float, help="classifier-free guidance scale (default: the config's, else 1, which is none)")
    add('--guidance-interval', type=_levels, metavar='LOW,HIGH', help="the noise levels it acts at (default: the config's, else all)")
    add('--cond', action='append', default=[], metavar='TYPE=VALUE', help='a condition of the model, as sample takes it; several in turn')
    add('--bases', type=lambda text: text.split(','), default=list(BASES), metavar='rab,sei,eab',
        help='the methods to fit, each at a third of the cost; the best is kept (default: all)')
    add('--config', help='the config, where the checkpoint carries none')
    add('--batch-size', type=int, default=256, help='how many items the model is called on at a time (default: 256)')
    add('--seed', type=int, default=0, help='of the noises (default: 0)')
    add('--device', help='cpu, cuda, mps (default: the fastest there is)')
    add('--raw', dest='ema', action='store_false', help='the raw weights of a .pth, not the averaged ones')
    add('--out', help='the file to write (default: MODEL_calibrated.json beside the checkpoint, where sample finds it)')
    parser.add_no_verify()
    add('--json', action='store_true', help='one machine-readable line on stdout')
    return parser


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion calibrate') -> int:
    args = vars(_parser(prog).parse_args(argv))
    as_json = args.pop('json')

    def work() -> None:
        made, path = calibrate_model(**args)
        rows = [{'steps': c.steps, 'base': c.base, **c.scores} for c in made]
        if as_json:
            print(json.dumps({'file': str(path), 'calibrations': rows}))
            return
        for c in made:
            after, before = ((c.scores[f'{when}median'], c.scores[f'{when}rms']) for when in ('', 'start_'))
            print(f'{c.steps} steps: median distance to converged samples {after[0]:.4f} (rms {after[1]:.4f}), before fitting '
                  f'{before[0]:.4f} ({before[1]:.4f}); base {c.base}')
        print(escape_name(path))
    return guarded(prog, work)
