"""k-diffusion evaluate: how good the samples of a trained model are, by the features of pictures."""
from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ..evaluation import (
    METRICS,
)
from ..tasks.evaluate import COPIES, EvaluationSettings, evaluate
from ..tasks.reference import DATASET_WORDS, EXTRACTOR_WORDS
from .entry import Parser, guarded

_EXAMPLE = '''examples:
  k-diffusion evaluate --checkpoint runs/demo -n 10000
  k-diffusion evaluate --checkpoint runs/cifar --metrics fid,fid_infinity,kid --extractor inception -n 50000
  torchrun --nproc-per-node 2 -m k_diffusion.cli evaluate --checkpoint runs/demo -n 10000

The same command again goes on where it was stopped.'''


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(',') if name.strip()]


def _parser(prog: str) -> Parser:
    parser = Parser(prog=prog, description=__doc__, epilog=_EXAMPLE)
    add = parser.add_argument
    add('--checkpoint', required=True, help="a .pth or .safetensors file, or a run's folder (its latest checkpoint)")
    add('-n', type=int, default=10_000, help='how many samples (default: 10000)')
    add('--metrics', type=_names, default=['fid', 'kid', 'precision_recall'], metavar='fid,kid,...',
        help='what to measure (default: fid,kid,precision_recall): ' + '; '.join(f'{m.name}: {m.meaning}' for m in METRICS.values())
        + f'; {COPIES}: the share of samples that copy a training picture, with the likeliest ones as a picture')
    add('--extractor', help=f'whose features are compared: {EXTRACTOR_WORDS} (default: classifier where there are classes, else inception)')
    add('--dataset', help=f'what to compare with: {DATASET_WORDS}')
    add('--reference-n', type=int, default=50_000, help='the most pictures of it that are used (default: 50000)')
    add(
        '--blocks',
        type=int,
        help='parts of the jackknife that gives fid its error, intervals and unbiased value, at '
        'the cost of as many '
        'distances; 0: none (default: 20 for at most 512 features, else 0)',
    )
    add('--out', help='folder to write to (default: evaluation beside the checkpoint)')
    add('--config', help='the config, where the checkpoint carries none')
    add('--batch-size', type=int, default=64, help='how many samples at a time (default: 64)')
    for name, kind, words in (('--steps', int, 'how many steps the sampler takes'), ('--sampler', str, 'the sampler'),
                              ('--schedule', str, 'the spacing of noise levels'), ('--guidance', float, 'classifier-free guidance scale')):
        add(name, type=kind, help=f"{words} (default: the config's)")
    add('--seed', type=int, default=0, help='sample i is drawn from (seed, i) alone (default: 0)')
    add('--cache', help="where reference features are kept (default: the user's cache folder)")
    add('--device', help='cpu, cuda, mps (default: the fastest there is)')
    add('--raw', dest='ema', action='store_false', help='the raw weights of a .pth, not the averaged ones')
    add('--allow-code', action='store_true',
        help='let a "custom" dataset run the Python file that the config names, and an extractor '
        'the code in its TorchScript file')
    parser.add_no_verify()
    add('--json', action='store_true', help='one machine-readable line on stdout')
    return parser


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion evaluate') -> int:
    args = vars(_parser(prog).parse_args(argv))
    as_json = args.pop('json')

    def work() -> None:
        found = evaluate(EvaluationSettings(**args))
        if int(os.environ.get('RANK', 0)):
            return
        print(json.dumps({**found.values, **found.facts}) if as_json else in_words(found.values, found.file, found.picture))
    return guarded(prog, work)


def in_words(values: dict[str, float], file: Path, picture: Path | None = None) -> str:
    """Values as lines, each with its error and its 95 % interval where there are such."""
    lines = []
    for name, value in values.items():
        if name.endswith(('_stderr', '_low', '_high')):
            continue
        error = f' +- {values[f"{name}_stderr"]:.2g}' if f'{name}_stderr' in values else ''
        between = f' (95 %: {values[f"{name}_low"]:.4g} to {values[f"{name}_high"]:.4g})' if f'{name}_low' in values else ''
        lines.append(f'{name:<14}{value:.5g}{error}{between}')
    return '\n'.join([*lines, f'written to {file}' + (f', likeliest copies: {picture}' if picture else '')])
