"""The formulas of scale: against what two processes send and hold, and against `info`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import k_diffusion as K
from k_diffusion.config import load_config, make_model
from k_diffusion.core.accelerators import GPUS
from k_diffusion.core.modules import n_params
from k_diffusion.tasks import scaling
from k_diffusion.tasks.scaling import Cluster, Work, simulate
from k_diffusion.training.sharding import group_sizes

TOY, ROOT = Path(__file__).with_name('traffic.py'), Path(__file__).parents[2]


@pytest.fixture(scope='module')
def measured(tmp_path_factory):
    """Return the bytes that each of two processes sent and held, by 'ddp' and 'fsdp2'."""
    folder = tmp_path_factory.mktemp('traffic')
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    command += ['--nproc-per-node', '2', str(TOY), str(folder)]
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f'rank{rank}.json').read_text()) for rank in range(2)]


@pytest.mark.slow
def test_ddp_sends_and_holds_what_the_formulas_say(measured):
    for rank in measured:
        result, parameters = rank['ddp'], sum(rank['ddp']['groups'])
        # Over a ring of two a process sends half of the buffer to reduce it, and half to share it.
        assert scaling.ddp_traffic(parameters, 2) == result['reduced_by_ddp'] == 4 * parameters
        buckets = 4 * parameters
        assert scaling.ddp_state_bytes(parameters, 2) == result['held'] + buckets
        assert scaling.ddp_state_bytes(parameters) == result['held']


@pytest.mark.slow
def test_fsdp2_sends_and_holds_what_the_formulas_say(measured):
    groups = measured[0]['fsdp2']['groups']
    *blocks, root = groups
    assert sorted(blocks) == [64 * 65, 65 * 128] and root == 9 * 64 + 129 * 8
    for rank in measured:
        result = rank['fsdp2']
        assert result['gathered'] == 4 * (2 * sum(groups) - root)
        assert result['reduced'] == 4 * sum(groups)
        # A process of two sends half of each whole tensor.
        assert scaling.fsdp_traffic(groups, 2) == (result['gathered'] + result['reduced']) / 2
        whole = 4 * (root + 3 * max(blocks))
        assert scaling.fsdp_state_bytes(groups, 2) - whole == result['held']


def test_one_gpu_needs_what_info_says(tiny_config):
    result = K.info(tiny_config, gpus=1, rate=1e12, batch_size=4)
    ddp, fsdp = result.scaling
    assert ddp.state_bytes == fsdp.state_bytes == 20 * result.parameters
    assert ddp.memory_bytes == pytest.approx(result.training_bytes - 2 * result.activation_bytes)
    assert ddp.traffic_bytes == fsdp.traffic_bytes == 0 and ddp.efficiency == 1
    one = K.info(tiny_config, rate=GPUS['h100'].bf16, batch_size=4).images_per_second
    assert ddp.items_per_second == pytest.approx(one)
    network = make_model(load_config(tiny_config))
    assert sum(group_sizes(network, 1000)) == n_params(network) == result.parameters


def test_a_billion_parameters_on_64_gpus():
    work = Work([90_000_000] * 11 + [10_000_000], 1e12, 1e9, 16, 3 * 256**2)
    cluster = Cluster(64, GPUS['h100'], 5e9, disk=2e9)
    ddp, fsdp = simulate(work, cluster)
    # 24 bytes a parameter, 7.875 bytes sent at 8 x 5 GB/s; 9.6e13 operations at 4.945e14 a second.
    assert ddp.state_bytes == 24e9 and ddp.memory_bytes == 40e9 and ddp.fits
    assert ddp.traffic_bytes == pytest.approx(7.875e9)
    assert ddp.traffic_seconds == pytest.approx(7.875 / 40)
    assert ddp.compute_seconds == pytest.approx(96e12 / 494.5e12)
    assert ddp.step_seconds == pytest.approx(ddp.compute_seconds / 3 + 7.875 / 40)
    assert ddp.items_per_second == pytest.approx(64 * 16 / ddp.step_seconds)
    assert ddp.data_bytes_per_second == pytest.approx(ddp.items_per_second * 196608)
    assert fsdp.state_bytes == pytest.approx(20e9 / 64 + 4 * 280e6)
    assert fsdp.traffic_bytes == pytest.approx(63 / 64 * 4 * 2.99e9)
    assert (ddp.checkpoint_seconds, fsdp.checkpoint_seconds) == (8, 1)  # by 1 node and by 8
    # A failure of one of 64 GPUs every 381 days / 64 x 5.55: 33 days.
    assert ddp.save_every_seconds == pytest.approx((2 * 8 * 33.0 * 86400) ** 0.5, rel=0.01)
    near = simulate(work, Cluster(8, GPUS['h100'], 50e9))[0]  # by the links of a node
    assert near.traffic_seconds == pytest.approx(7e9 / 450e9) and near.efficiency == 1
    wide = simulate(work, Cluster(64, GPUS['h100'], 60e9))[0]  # 8 x 60 GB/s are more than a link
    assert wide.traffic_seconds == pytest.approx(7.875e9 / 450e9)
    small = simulate(work, Cluster(64, GPUS['a10'], 50e9))[0]
    assert not small.fits


def test_the_command_prints_both_ways_and_refuses_nonsense(tiny_config, capsys):
    from k_diffusion.cli.info import main

    assert main([str(tiny_config), '--rate', '1e12', '--gpus', '64', '--network', '400']) == 0
    out = capsys.readouterr().out
    assert 'ddp  ' in out and 'fsdp2  ' in out and 'sent a step' in out
    assert main([str(tiny_config), '--gpus', '0', '--gpu', 'h1000', '--network', '0']) != 0
    err = capsys.readouterr().err
    for word in ('--gpus must be at least 1', "did you mean 'h100'", '--network must be above 0'):
        assert word in err
    assert main([str(tiny_config), '--gpu', 'a100', '--disk', '2']) != 0
    assert '--gpus must be given with gpu and disk' in capsys.readouterr().err


@pytest.fixture
def tiny_config(tmp_path):
    """The path of a config of a small network without augmentation."""
    model = {
        'type': 'image_v1',
        'input_channels': 1,
        'input_size': [16, 16],
        'mapping_out': 16,
        'depths': [1, 1],
        'channels': [16, 16],
        'self_attn_depths': [False, True],
        'sigma_data': 0.5,
        'sigma_min': 0.02,
        'sigma_max': 40,
        'sigma_sample_density': {'type': 'lognormal', 'mean': -1.0, 'std': 1.2},
    }
    path = tmp_path / 'tiny.json'
    path.write_text(json.dumps({'model': model, 'dataset': {'type': 'demo'}}))
    return path
