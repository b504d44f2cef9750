"""k-diffusion train-autoencoder: the first stage of latent diffusion, trained on a folder of pictures."""
from __future__ import annotations

import json
from collections.abc import Sequence

from ..tasks.autoencoder import train_autoencoder
from ..tasks.run.settings import status_after
from .entry import Parser, guarded

_EXAMPLE = '''example:
  k-diffusion train-autoencoder --config configs/autoencoders/icons.json --name icons-ae

Then "encoder": {"type": "autoencoder", "location": "runs/icons-ae"} in the config of a model has it trained on latents.'''


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion train-autoencoder') -> int:
    parser = Parser(prog=prog, description=__doc__, epilog=_EXAMPLE)
    add = parser.add_argument
    add('--config', required=True, help='the config file, whose model has the type "autoencoder"')
    add('--name', default='autoencoder', help='the name of the run (default: autoencoder)')
    add('--run-dir', help='the folder of the run (default: runs/NAME)')
    add('--end-step', type=int, help="stop after so many optimizer steps in all (default: the config's)")
    add('--batch-size', type=int, help="images per step and process (default: the config's, else 64)")
    add('--seed', type=int, default=0, help='the seed (default: 0)')
    add('--device', help='cpu, cuda, mps (default: the fastest there is)')
    add('--save-every', type=int, default=1000, help='save a checkpoint every so many steps (default: 1000)')
    add('--reset-optimizer', action='store_true', help="start the optimizer's moments anew, as another type of optimizer needs")
    add('--json', action='store_true', help='one machine-readable line on stdout')
    args = vars(parser.parse_args(argv))
    as_json = args.pop('json')

    def work() -> int:
        done = train_autoencoder(**args)
        summary = {'path': str(done.path), 'pictures': str(done.pictures), 'step': done.step, 'error': done.error}
        words = f'{done.path}, step {done.step:,}: error {done.error:.3f} in [-1, 1]\noriginals above reconstructions: {done.pictures}'
        print(json.dumps(summary) if as_json else words)
        return status_after(done.signal)
    return guarded(prog, work)
