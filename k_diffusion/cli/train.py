"""k-diffusion train: trains the model of a config, or goes on with a run that was stopped."""
from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence

from ..tasks.reference import DATASET_WORDS
from ..tasks.run.settings import RunSettings
from ..tasks.train import train
from .entry import Parser, guarded

__all__ = ['RunSettings', 'main', 'train']

_EXAMPLE = '''examples:
  k-diffusion train --config configs/config_mnist_small.json --name digits --end-step 2000
  accelerate launch train.py --config configs/config_cifar10.json --name cifar --mixed-precision bf16
  torchrun --nproc-per-node 2 train.py --config configs/config_mnist_small.json --name digits

The same command again goes on where the run stopped. Everything lands in runs/NAME.'''


def _parser(prog: str) -> Parser:
    parser = Parser(prog=prog, description=__doc__, epilog=_EXAMPLE)
    add = parser.add_argument
    add('--config', required=True, help='the config file (.json, or a .safetensors file that carries one)')
    add('--name', default='model', help='the name of the run (default: model)')
    add('--run-dir', help='the folder of the run (default: runs/NAME)')
    add('--batch-size', type=int, help="images per step and process (default: the config's, else 64)")
    add('--end-step', type=int, help='stop after so many optimizer steps in all')
    add('--lr', type=float, help="the learning rate (default: the config's)")
    add('--grad-accum-steps', type=int, default=1, help='gradient accumulation steps (default: 1)')
    add('--micro-batch', help="take so many of a batch at a time, or 'auto': what fits into memory (default: all)")
    add('--mixed-precision', choices=('no', 'fp16', 'bf16'), help='the type of the computation; weights stay float32')
    add('--checkpointing', action='store_true', help='recompute activations to save memory, where the model can')
    add('--shard', action='store_true', help='cut weights, average and optimizer state into pieces, one for each process (FSDP2)')
    add('--compile', action='store_true', help='compile the model')
    add('--dry-run', action='store_true', help='say what would be done and what it costs, draw the first batch, and leave')
    add('--seed', type=int, help="the seed (default: the run's own, else 0)")
    add('--device', help='cpu, cuda, mps (default: the fastest there is)')
    _data_options(parser)
    _watching_options(parser)
    _resuming_options(parser)
    return parser


def _data_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--num-workers', type=int, default=8, help='processes that decode pictures, at most one per core (default: 8)')
    add('--start-method', choices=('fork', 'forkserver', 'spawn'), default='spawn', help='how they start (default: spawn)')
    add('--worker-timeout', type=float, default=600., metavar='SECONDS',
        help='the time without a batch after which those processes count as hanging, '
        'which ends the run (default: 600; 0: never)')
    add('--allow-code', action='store_true',
        help='let a "custom" dataset run the Python file that the config names, and an extractor '
        'the code in its TorchScript file')


def _watching_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--save-every', type=int, default=10000, help='save a checkpoint every so many steps (default: 10000)')
    add('--keep-last', type=int, default=0, help='delete older checkpoints than the last so many (default: 0, none is deleted)')
    add('--keep-best', type=int, default=1, help='... but keep so many of the smallest smoothed loss (default: 1)')
    add('--ema-snapshots', type=int, help="write so many snapshots for `k-diffusion ema` over the run (default: the config's, else 0)")
    add('--demo-every', type=int, default=500, help='draw a grid of samples every so many steps (default: 500; 0: never)')
    add('--sample-n', type=int, default=64, help='how many samples the grid holds (default: 64)')
    add('--evaluate-every', type=int, default=10000, help='evaluate every so many steps (default: 10000)')
    add('--evaluate-n', type=int, default=2000, help='how many samples to evaluate (default: 2000; 0: never)')
    add('--evaluate-only', action='store_true', help='evaluate the latest checkpoint instead of training')
    add('--evaluate-with', default='inception', help='the feature extractor: inception, clip, dinov2, classifier (trained in seconds on '
        'the labelled data set, without a download) or a TorchScript file (default: inception)')
    add('--evaluate-against', help=f'a held-out data set to compare with (default: the training set): {DATASET_WORDS}')
    add('--clip-model', default='ViT-B/16', help='the CLIP model to evaluate with, or its folder (default: ViT-B/16)')
    add('--dinov2-model', default='vitl14', help='the DINOv2 model to evaluate with, or its folder (default: vitl14)')
    add('--gns', action='store_true', help='follow the gradient noise scale (one process takes each batch in two halves for it)')
    add('--wandb-project', help='log to this wandb project')
    add('--wandb-entity', help='the wandb entity')
    add('--wandb-group', help='the wandb group')
    add('--wandb-save-model', action='store_true', help='upload checkpoints to wandb')
    add('--wandb-offline', action='store_true', help='keep what is for wandb on the disk (`wandb sync` sends it later)')
    add('--tensorboard', action='store_true', help='write event files for TensorBoard')
    add('--no-report', dest='report', action='store_false', help='write no NAME_report.html')
    add('--json', action='store_true', help='one machine-readable line on stdout at the end')


def _resuming_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--resume', help='the checkpoint to go on from (default: the latest of the run)')
    add('--resume-inference', help='a .safetensors file to start the weights from')
    add('--no-verify', dest='verify', action='store_false',
        help='take what --resume or --grow names though it is not what the manifest beside it says')
    add('--reset-ema', action='store_true', help='start the averaged weights anew from the raw ones')
    add('--reset-optimizer', action='store_true', help="start the optimizer's moments anew, as another type of optimizer needs")
    add('--grow', metavar='CHECKPOINT', help='start from a network trained on smaller pictures: a .pth, a .safetensors or its run')
    add('--grow-config', metavar='CONFIG', help='its config, where it carries none')
    add('--grow-warmup', type=int, default=0, metavar='STEPS',
        help='let the learning rate of the new layers, and theirs alone, rise over so many steps (default: 0)')


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion train') -> int:
    args = vars(_parser(prog).parse_args(argv))
    as_json = args.pop('json')

    def work() -> int:
        done = train(RunSettings(**args))
        if as_json and int(os.environ.get('RANK', 0)) == 0:
            print(json.dumps(done.summary()))
        return done.exit_status
    return guarded(prog, work)
