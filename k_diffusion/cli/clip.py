"""k-diffusion clip: images from a trained model, drawn towards texts and pictures by a CLIP model."""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ..generation import BETWEEN
from ..sampling import SAMPLERS
from ..tasks.clip import clip
from .entry import Parser
from .output import drawn_by

_EXAMPLE = '''examples:
  k-diffusion clip "a photo of the digit seven" --checkpoint runs/demo --clip-model my_clip_folder --no-clamp -cgs 50
  k-diffusion clip "a red apple:2" "a painting:0.5" --image sketch.png:0.3 --checkpoint runs/mine --cutn 8 --init sketch.png --sigma-start 5

A weight follows a prompt after a colon; a negative one keeps away from it. CLIP models are those of the transformers library: a folder that
save_pretrained wrote, a name on the hub, or one of OpenAI's names.'''


def _parser(prog: str, defaults: dict[str, Any]) -> Parser:
    parser = Parser(prog=prog, description=__doc__, epilog=_EXAMPLE)
    add = parser.add_argument
    add('prompts', nargs='*', metavar='prompt', help='a text, with its weight after a colon if you like')
    add('--image', dest='images', action='append', default=[], metavar='FILE', help='a picture as a prompt, with its weight after a colon')
    add('--checkpoint', required=True, help="a .pth or .safetensors file, or a run's folder (its latest checkpoint)")
    add('--config', help='the config, where the checkpoint carries none')
    add('-n', type=int, default=64, help='how many images (default: 64)')
    add('--batch-size', type=int, default=16, help='how many at a time; changes no image (default: 16)')
    add('--steps', type=int, default=100, help='how many steps the sampler takes (default: 100)')
    _guidance_options(parser)
    add('--init', metavar='FILE', help='a picture to begin with')
    add('--sigma-start', type=float, help="the noise laid over it (default: the schedule's first level)")
    add('--seed', type=int, default=0, help='image i is drawn from (seed, i) alone (default: 0)')
    add('--sampler', default='dpmpp_2s_ancestral', help='the sampler (default: dpmpp_2s_ancestral): ' + ', '.join(SAMPLERS))
    add('--schedule', default='karras', help='the spacing of noise levels (default: karras): ' + ', '.join(BETWEEN))
    add('--sigma-min', type=float, help="the least noise level before 0 (default: the config's)")
    add('--sigma-max', type=float, help="the noise level to start from (default: the config's)")
    add('--time-travel', dest='time_travel_steps', type=int, default=1, metavar='TIMES',
        help='take each step between the levels 0.3 and 10 so often, with fresh noise between (default: 1)')
    add('--preview', metavar='FILE', help='write a grid of the estimates so far to this file as they change')
    add('--out', help='folder to write to (default: samples, samples-2, ...)')
    add('--overwrite', action='store_true', help='replace the samples that are in --out already')
    add('--prefix', help='write {prefix}_00000.png ... instead of a folder (default: %(default)s)')
    add('--device', help='cpu, cuda, mps (default: the fastest there is)')
    parser.add_no_verify()
    add('--json', action='store_true', help='one machine-readable line on stdout')
    parser.set_defaults(**defaults)
    return parser


def _guidance_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--clip-model', default='ViT-B/16', help="a folder, a name on the hub, or OpenAI's name (default: ViT-B/16)")
    add('--clip-guidance-scale', '-cgs', type=float, default=500., help='how strongly (default: 500; often less is more)')
    add('--cutn', type=int, default=1, help='how many views of the picture CLIP sees (default: 1)')
    add('--cut-pow', type=float, default=1., help='larger: smaller cutouts (default: 1)')
    add('--no-clamp', dest='clamp', action='store_false', help='let estimates leave [-1, 1]; reaches prompts more often')
    add('--normalise', action='store_true', help='the scale counts standard deviations of what is unknown at each level (take 0.1 to 1)')


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion clip', **defaults: Any) -> int:
    """The command; `defaults` are those of the door it is called through."""
    return drawn_by(_parser(prog, defaults), clip, argv)
