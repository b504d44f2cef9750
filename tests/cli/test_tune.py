"""Tuning by reward: a run and its resume, rewards, prompts and the log."""

from __future__ import annotations

import csv
import dataclasses

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

import k_diffusion as K
from k_diffusion.cli.tune import main
from k_diffusion.core.weights import load_checkpoint
from k_diffusion.tasks import train, tune
from k_diffusion.tasks.rewards import ClassReward, check_rewards
from k_diffusion.tasks.run.rollouts import Rollouts, Round

METHODS = ('nft', 'grpo')


def brightness(samples):
    return samples.flatten(1).mean(1)


def arguments(trained, folder, method='nft', **more):
    return {
        'checkpoint': trained,
        'reward': brightness,
        'method': method,
        'run_dir': folder,
        'end_step': 6,
        'batch_size': 4,
        'batches': 2,
        'steps': 3,
        'evaluate_every': 3,
        'evaluate_n': 8,
        'device': 'cpu',
        'show': False,
        **more,
    }


def rows_of(folder):
    """The log without the seconds."""
    with (folder / 'tuned_tuning.csv').open() as file:
        return [{**row, 'seconds': ''} for row in csv.DictReader(file)]


class StopAt:
    every = 1

    def __init__(self, step):
        self.step = step

    def __call__(self, trainer):
        if trainer.step == self.step:
            raise K.Stop


def assert_same(a, b, where=''):
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f'{where}.{key}')
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b)):
            assert_same(x, y, f'{where}[{i}]')
    else:
        assert a == b or (a != a and b != b), where


@pytest.mark.parametrize('method', METHODS)
def test_an_interrupted_run_is_the_straight_one(method, trained, tmp_path):
    # A round takes 4 steps: the run stops in the middle of the first and of the second.
    straight = K.tune(**arguments(trained, tmp_path / 'a', method))
    parts = tmp_path / 'b'
    for end in (2, 5):
        run = K.tune(**arguments(trained, parts, method, hooks=[StopAt(end)]))
        assert (run.status, run.step) == ('stopped', end)
    again = K.tune(**arguments(trained, parts, method))
    assert (straight.status, again.status, again.step) == ('done', 'done', 6)
    one, other = load_checkpoint(straight.checkpoint), load_checkpoint(again.checkpoint)
    for state in (one, other):
        del state['elapsed']
    assert_same(one, other)
    assert rows_of(tmp_path / 'a') == rows_of(parts)
    assert [row['step'] for row in rows_of(parts)] == ['3', '6']


@pytest.mark.parametrize('method', METHODS)
def test_the_reward_rises(method, trained, tmp_path):
    # The tiny model has learnt little, and a mean over pixels is easily raised.
    rate = {'nft': 3e-3, 'grpo': 1e-2}[method]
    more = {'batch_size': 16, 'batches': 1, 'lr': rate, 'evaluate_n': 32}
    more['reward'] = lambda samples: 20 * brightness(samples)
    K.tune(**arguments(trained, tmp_path, method, **{**more, 'end_step': 1, 'evaluate_every': 1}))
    K.tune(**arguments(trained, tmp_path, method, **{**more, 'end_step': 40, 'evaluate_every': 40}))
    first, last = (float(row['reward']) for row in rows_of(tmp_path))
    assert last > first + 1


def gradients(settings):
    """The gradients of the steps of a training run, one tensor for each step."""
    results = []

    def note(optimizer, *_):
        grads = [p.grad.flatten() for group in optimizer.param_groups for p in group['params']]
        results.append(torch.cat(grads).clone())

    handle = register_optimizer_step_pre_hook(note)
    try:
        train.train(settings)
    finally:
        handle.remove()
    return results


@pytest.mark.parametrize('method', METHODS)
def test_micro_batches_do_not_change_the_gradient(method, trained, tmp_path, monkeypatch):
    settings_list = []
    monkeypatch.setattr(tune, 'train', settings_list.append)
    K.tune(**arguments(trained, tmp_path, method, trained_steps=1, evaluate_every=0, lr=1e-6))
    settings_list[0].config['model']['dropout_rate'] = (
        0.0  # whose masks are drawn for each micro-batch
    )
    whole, parts = (
        gradients(
            dataclasses.replace(settings_list[0], run_dir=tmp_path / str(n), end_step=3, **how)
        )
        for n, how in ((1, {}), (2, {'batch_size': 2, 'grad_accum_steps': 2}))
    )
    for one, other in zip(whole, parts, strict=True):
        assert (one - other).norm() < 1e-3 * one.norm()


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)

    def forward(self, x, sigma):
        return self.layer(x) / (1 + sigma[:, None])


def test_a_network_and_tensors_of_ones_own(tmp_path):
    data = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    base_run = K.train(
        network=Small(), dataset=data, end_step=2, name='own', run_dir=tmp_path / 'own',
        device='cpu', show=False, evaluate_n=0, demo_every=0, report=False,
    )  # fmt: skip
    run = K.tune(
        **arguments(
            base_run.checkpoint, tmp_path / 'run', network=Small(), dataset=data, end_step=3
        )
    )
    assert run.status == 'done'
    assert 0 < float(rows_of(tmp_path / 'run')[0]['fid']) < 1e6


def test_calls_are_counted(trained, tmp_path):
    more = {'end_step': 4, 'evaluate_every': 4}
    K.tune(**arguments(trained, tmp_path / 'nft', **more))
    # A round of 8 samples in 3 calls each; 4 steps of 4 items, each 3 for the gradient, 1 for the
    # old estimate and 1 for the one before tuning.
    assert rows_of(tmp_path / 'nft')[0]['calls'] == str(8 * 3 + 4 * 4 * 5)
    K.tune(**arguments(trained, tmp_path / 'grpo', 'grpo', pull=0.0, trained_steps=2, **more))
    # Two of the steps with noise, a call each.
    assert rows_of(tmp_path / 'grpo')[0]['calls'] == str(8 * 3 + 4 * 4 * 2 * 3)


def test_the_command_runs_a_file_only_where_that_is_allowed(trained, tmp_path, capsys):
    (tmp_path / 'mine.py').write_text(
        'def dark(samples):\n    return -samples.flatten(1).mean(1)\n'
    )
    command = [
        '--checkpoint', str(trained), '--reward', f'{tmp_path}/mine.py:dark', '--run-dir',
        str(tmp_path / 'run'), '--end-step', '1', '--batch-size', '4', '--steps', '2',
        '--evaluate-every', '0', '--device', 'cpu', '--classes', '3,7',
    ]  # fmt: skip
    assert main(command) == 1
    assert 'runs only with --allow-code' in capsys.readouterr().err
    assert main([*command, '--allow-code']) == 0
    state = load_checkpoint(tmp_path / 'run' / 'tuned_00000001.pth')
    assert state['objective']['round'] == 0
    # The same name with another reward is another run.
    (tmp_path / 'mine.py').write_text('def dark(samples):\n    return samples.flatten(1).mean(1)\n')
    assert main([*command[:-2], '--allow-code', '--end-step', '2']) == 1
    assert 'give another name for a new run' in capsys.readouterr().err


def test_a_name_in_a_file_that_is_not_a_function_is_refused(trained, tmp_path):
    (tmp_path / 'mine.py').write_text('level = 3\n')
    reward = f'{tmp_path}/mine.py:level'
    with pytest.raises(TypeError, match=r'reward must name a function.*is 3'):
        K.tune(**arguments(trained, tmp_path / 'run', reward=reward, allow_code=True))


def test_a_flow_map_is_refused(trained, tmp_path):
    fast = K.distill(
        trained, method='ect', steps=1, run_dir=tmp_path / 'fast', batch_size=4, device='cpu',
        show=False, demo_every=0, report=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match='checkpoint must be of a denoiser'):
        K.tune(**arguments(fast.folder, tmp_path / 'run'))


def test_a_run_at_a_url_has_its_log_in_the_local_folder(trained, tmp_path, monkeypatch):
    pytest.importorskip('fsspec')
    monkeypatch.chdir(tmp_path)
    more = {'end_step': 1, 'evaluate_every': 1, 'evaluate_n': 4}
    run = K.tune(**arguments(trained, f'file://{tmp_path}/bucket', **more))
    assert run.status == 'done' and (tmp_path / 'bucket' / 'tuned_00000001.pth').is_file()
    assert len(rows_of(tmp_path / 'runs' / 'tuned')) == 1


def test_a_class_is_rewarded_by_its_probability():
    class Network:
        def logits(self, x):
            return torch.tensor([[0.0, 0.0], [0.0, 1.0986122886681098]])  # log 3

    assert ClassReward(Network(), 1)(torch.zeros(2, 1, 4, 4)).tolist() == pytest.approx([0.5, 0.75])


@pytest.mark.parametrize(
    ('reward', 'message'),
    [
        ('class:12', 'reward must name one of the classes of the model, which are 0 to 9; got 12'),
        ('beauty', 'reward must be a function, class:NUMBER, clip:WORDS or FILE.py:FUNCTION'),
        (lambda x: x.mean(), r'reward must return a tensor \[N\], here \[4\]'),
        (lambda x: x.flatten(1).mean(1) / 0, 'reward must return finite numbers'),
    ],
)
def test_rewards_that_do_not_serve_are_refused(reward, message, trained, tmp_path):
    with pytest.raises(ValueError, match=message):
        K.tune(**arguments(trained, tmp_path / 'run', reward=reward))


def test_a_sampler_that_is_no_policy_is_refused_for_grpo(trained, tmp_path):
    with pytest.raises(ValueError, match='sampler must draw noise; dpmpp_2m draws none'):
        K.tune(**arguments(trained, tmp_path / 'run', 'grpo', sampler='dpmpp_2m'))


def make_rollouts(network, growth=0.25):
    def draw(denoiser, seeds, cond):
        return {'image': denoiser(torch.tensor(seeds)[:, None] % 1000 / 1000.0, None)}

    return Rollouts(
        network, lambda net: Wrapped(net), draw, lambda x: x[:, 0], lambda x: x,
        conditions={'class_cond': torch.tensor([5, 6])}, prompts=2, shape=Round(2, 1, 2, 1), seed=0,
        device=torch.device('cpu'), gather=lambda x: x, facts={}, growth=growth,
    )  # fmt: skip


class Wrapped(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.inner_model = net

    def forward(self, x, sigma, **cond):
        return self.inner_model(x)


def test_the_policy_moves_at_the_start_of_a_round_alone():
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(network.weight)
    rollouts = make_rollouts(network)
    batches = rollouts.iterate(0)
    weights = []
    for value in (2.0, 3.0, 4.0, 5.0):
        next(batches)  # two steps a round
        weights.append(rollouts.older.weight.item())
        torch.nn.init.constant_(network.weight, value)
    # Round 1 begins when the network is at 3: 1/4 of the old copy stays.
    assert weights == [1.0, 1.0, 0.25 * 1 + 0.75 * 3, 2.5]


def test_a_round_is_drawn_again_from_its_state():
    network = torch.nn.Linear(1, 1, bias=False)
    rollouts = make_rollouts(network)
    batches = rollouts.iterate(0)
    round_batches = [next(batches) for _ in range(3)]
    state, calls = rollouts.state_dict(), rollouts.calls
    torch.nn.init.constant_(network.weight, 7.0)  # it has learnt in the meantime
    expected = next(batches)
    other = make_rollouts(torch.nn.Linear(1, 1, bias=False))
    other.facts = rollouts.facts
    other.load_state_dict(state)
    batch_again = next(other.iterate(3 * 2))
    assert_same(batch_again, expected)
    assert other.calls == calls
    items = torch.cat([batch['item'] for batch in round_batches])
    assert items.tolist() == [0, 1, 2, 3, 4, 5]
    first = torch.cat([batch['image'] for batch in round_batches[:2]])
    assert len(first.unique()) == 4  # a pass takes each sample once
    for batch in round_batches:
        assert torch.equal(batch['cond']['class_cond'], 5 + batch['prompt'])


def test_prompts_are_groups():
    rollouts = make_rollouts(torch.nn.Linear(1, 1))
    batches = rollouts.iterate(0)
    both = [next(batches), next(batches)]
    prompts = torch.cat([batch['prompt'] for batch in both])
    advantages = torch.cat([batch['advantage'] for batch in both])
    assert prompts.bincount().tolist() == [2, 2]
    for prompt in (0, 1):
        assert advantages[prompts == prompt].sum().item() == pytest.approx(0, abs=1e-5)


def test_rewards_are_taken_to_float64():
    assert check_rewards(torch.tensor([1.0, 2.0]), 2).dtype == torch.float64
    with pytest.raises(ValueError, match='got 3'):
        check_rewards(3, 1)
