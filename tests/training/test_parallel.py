"""Two processes over gloo: a network in pieces, compiled, and in half precision."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from k_diffusion.core.weights import load_checkpoint
from k_diffusion.training.checkpoints.reading import read_training_checkpoint

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))


def launch(folder, kind):
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    command += ['--nproc-per-node', '2', str(HERE / 'parallel.py'), str(folder), kind]
    paths = [str(ROOT), str(HERE), os.environ.get('PYTHONPATH', '')]
    settings = {
        'OMP_NUM_THREADS': '1',
        'ACCELERATE_USE_CPU': 'true',
        'PYTHONPATH': os.pathsep.join(paths),
    }
    done = subprocess.run(
        command,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_pieces_are_compiled(tmp_path):
    out = launch(tmp_path, 'train')
    result = re.findall(r'(\w+): (\d) processes, step 2, (\d+) graphs', out)
    assert sorted({(name, world) for name, world, _ in result}) == [
        (name, '2') for name in ('compiled', 'ddp', 'half', 'pieces')
    ]
    graphs = {name: int(count) for name, _, count in result}
    # A graph ends where pieces are put together: at each block that is cut by itself.
    assert graphs['pieces'] == 0 and graphs['compiled'] > 1 and graphs['half'] > 1
    assert graphs['ddp'] >= 1
    assert 'torch.compile failed' not in out
    ddp = load_checkpoint(tmp_path / 'ddp' / 'ddp_00000002.pth')['model']
    pieces, compiled, half = (
        read_training_checkpoint(tmp_path / name / f'{name}_00000002.shards')['model']
        for name in ('pieces', 'compiled', 'half')
    )
    for key, value in pieces.items():
        torch.testing.assert_close(compiled[key], value, atol=1e-5, rtol=0)
        torch.testing.assert_close(ddp[key], value, atol=1e-5, rtol=0)
        torch.testing.assert_close(half[key], value, atol=4e-3, rtol=0)  # two steps of 1e-3 at most


@pytest.mark.slow
def test_pieces_are_trained_in_fp16(tmp_path):
    """The scale is that of all pieces: an infinite loss on one process is left out on both."""
    from parallel import scaled_trainer

    out = launch(tmp_path, 'fp16')
    assert out.count('fp16: 2 processes, step 4') == 2
    first, second = (load_checkpoint(tmp_path / f'fp16_{rank}.pth') for rank in range(2))
    assert first['scale'] == second['scale'] == 512.0
    AcceleratorState._reset_state()
    trainer = scaled_trainer(Accelerator(cpu=True), False, 4, batch_size=8)
    with pytest.warns(UserWarning, match='the loss is inf at step 2'):
        trainer.run()
    for key, value in trainer.model.state_dict().items():
        assert torch.equal(first['model'][key], second['model'][key])
        torch.testing.assert_close(first['model'][key], value, atol=5e-3, rtol=0)
