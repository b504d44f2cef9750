"""Two processes over gloo draw what one draws and come to the same weights."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from k_diffusion.core.weights import load_checkpoint

TOY = Path(__file__).parent / 'toy.py'
ROOT = Path(__file__).parents[2]


def launch(folder, processes, batch_size, steps, *words):
    folder.mkdir()
    env = {
        **os.environ,
        'OMP_NUM_THREADS': '1',
        'ACCELERATE_USE_CPU': 'true',
        'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]),
    }
    command = [
        sys.executable,
        '-m',
        'torch.distributed.run',
        '--standalone',
        '--nproc-per-node',
        str(processes),
        str(TOY),
        str(folder),
        str(batch_size),
        str(steps),
        *words,
    ]
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, [load_checkpoint(folder / f'rank{rank}.pth') for rank in range(processes)]


def collect_draws(runs):
    """{item: (u, noise)} over all processes."""
    return {
        int(i): (u_i, n_i)
        for run in runs
        for item, u, noise in run['calls']
        for i, u_i, n_i in zip(item, u, noise)
    }


@pytest.fixture(scope='module')
def runs(tmp_path_factory, toy):
    folder = tmp_path_factory.mktemp('processes')
    out, two = launch(folder / 'two', 2, 4, 5)
    calls = []
    one = toy.make_trainer(batch_size=8, grad_accum_steps=2, calls=calls, end_step=5, read_every=2)
    one.run()
    return out, two, one, calls


def test_the_world_is_of_size_two(runs):
    out, two, _, _ = runs
    assert sorted(re.findall(r'rank \d of world size \d: done', out)) == [
        f'rank {rank} of world size 2: done' for rank in range(2)
    ]
    assert [run['step'] for run in two] == [5, 5]


def test_a_stop_asked_of_one_stops_both_at_one_step(runs):
    assert sorted(re.findall(r'rank \d: interrupted at step \d+', runs[0])) == [
        f'rank {rank}: interrupted at step 6' for rank in range(2)
    ]


def test_what_is_drawn_is_the_same(runs):
    _, two, _, calls = runs
    ours, theirs = collect_draws([{'calls': calls}]), collect_draws(two)
    assert sorted(ours) == sorted(theirs) == list(range(80))
    assert sum(len(item) for run in two for item, _, _ in run['calls']) == 80
    for item, (u, noise) in ours.items():
        assert torch.equal(u, theirs[item][0]) and torch.equal(noise, theirs[item][1])


def test_weights_average_and_loss_are_the_same(runs, toy):
    _, two, one, _ = runs
    before = toy.make_trainer().model.state_dict()
    for run in two:
        for name, p in one.model.state_dict().items():
            torch.testing.assert_close(run['model'][name], p, rtol=0, atol=1e-6)
        for name, p in one.ema_model.state_dict().items():
            torch.testing.assert_close(run['ema'][name], p, rtol=0, atol=1e-6)
        assert run['loss'] == pytest.approx(one.last_loss, rel=1e-5)
        assert run['smoothed'] == pytest.approx(one.ema_stats['loss'], rel=1e-5)
    assert (before['conv.weight'] - two[0]['model']['conv.weight']).abs().max() > 1e-3
    assert all(torch.equal(p, two[1]['model'][name]) for name, p in two[0]['model'].items())


def test_gradient_noise_is_that_of_the_shares(runs, toy):
    """At the first step, from the gradients of each process's 8 items, taken here."""
    _, two, _, _ = runs
    net = toy.make_trainer().model
    loss, at = toy.make_loss(net), toy.MemoryLoader(toy.images(), 1)._at
    gradients = []
    for run in two:
        item, u = (torch.cat([call[i] for call in run['calls'][:2]]) for i in (0, 1))
        share = loss(
            {'image': torch.stack([at(int(i)) for i in item]), 'item': item, 'u': u}
        ).mean()
        gradients.append(
            torch.cat([g.flatten() for g in torch.autograd.grad(share, list(net.parameters()))])
        )
    small = sum(g.square().sum() for g in gradients) / 2
    large = (sum(gradients) / 2).square().sum()
    expected = ((16 * large - 8 * small) / 8).item(), ((small - large) / (1 / 8 - 1 / 16)).item()
    for run in two:
        assert run['noise'][0] == pytest.approx(expected, rel=1e-4)
        assert len(run['noise']) == 5


@pytest.fixture(scope='module')
def paused(tmp_path_factory):
    """Two processes' losses by noise, with a pause and without, and the folder."""
    folder = tmp_path_factory.mktemp('paused') / 'two'
    return launch(folder, 2, 4, 4, 'pause')[1], folder


def test_losses_by_noise_after_a_pause_are_those_of_a_straight_run_bit_for_bit(paused):
    ranks, _ = paused
    assert [rank['world'] for rank in ranks] == [2, 2]
    for rank in ranks:
        straight, resumed = rank['straight'], rank['resumed']
        assert torch.equal(straight['sums'], resumed['sums'])
        assert straight['values'] == resumed['values']
        assert all(torch.equal(p, resumed['model'][name]) for name, p in straight['model'].items())
    # (each has its own)
    assert not torch.equal(ranks[0]['straight']['sums'], ranks[1]['straight']['sums'])
    assert ranks[0]['straight']['values'] == ranks[1]['straight']['values']
    total, number = sum(rank['straight']['sums'].double() for rank in ranks)
    expected = [float(s / n) for s, n in zip(total, number)]
    assert ranks[0]['straight']['values'] == pytest.approx(expected, rel=1e-6)


def test_losses_by_noise_of_two_processes_are_taken_over_by_one(paused, toy):
    """Also from older checkpoints, which hold the mean over the processes."""
    state = load_checkpoint(paused[1] / 'paused_00000004.pth')
    sums = state['loss_by_noise']['sums']
    assert sums.shape == (2, 2, 8)
    expected = [float(s / n) for s, n in zip(*sums.double().sum(0))]
    for stored_sums in sums, sums.mean(0):
        one = toy.make_trainer(batch_size=8)
        one.load_state_dict({**state, 'loss_by_noise': {'sums': stored_sums}})
        assert one.loss_by_noise.values(one.accelerator) == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_two_processes_go_back_from_a_spike_together(tmp_path):
    """Paused within the spike or not, both end at the same weights bit for bit."""
    ranks = launch(tmp_path / 'two', 2, 2, 40, 'spike')[1]
    for rank in ranks:
        straight, resumed = rank['straight'], rank['resumed']
        assert straight['spikes']['rewinds'] == resumed['spikes']['rewinds'] == 1
        # (30 steps before it was noticed, and 16 from the checkpoint of step 24 on)
        assert straight['items'] == resumed['items'] == 4 * (30 + 16)
        for key in ('model', 'model_ema'):
            assert all(torch.equal(p, resumed[key][name]) for name, p in straight[key].items())
            other = ranks[0]['straight'][key]
            assert all(torch.equal(p, other[name]) for name, p in straight[key].items())
