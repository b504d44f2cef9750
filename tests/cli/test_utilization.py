"""The share of a device that training reaches, and that of waiting for data, in the log."""

from __future__ import annotations

import json
import time

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import k_diffusion as K
from k_diffusion.config import Experiment
from k_diffusion.core.accelerators import find_gpu, peak_flops
from k_diffusion.tasks.run.display import describe
from k_diffusion.tasks.run.micro_batches import count_item_flops, random_batch_loss

QUIET = {'device': 'cpu', 'demo_every': 0, 'evaluate_n': 0, 'show': False, 'report': False}


class Pixelwise(nn.Module):
    """A product of each of the 64 pixels with a 3 x 3 matrix."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(3, 3)

    def forward(self, x, sigma):
        return self.mix(x.movedim(1, -1)).movedim(-1, 1)


class Slow:
    """Sixty items, each of which takes 2 ms to read."""

    def __len__(self):
        return 60

    def __getitem__(self, index):
        time.sleep(0.002)
        return torch.full((3, 8, 8), index / 60 - 0.5)


def last_line(folder, dataset, **settings):
    options = {'batch_size': 8, 'end_step': 20, 'name': 'm', 'sigma_data': 0.5, **QUIET, **settings}
    K.train(network=Pixelwise(), dataset=dataset, run_dir=folder, **options)
    return json.loads((folder / 'm_log.jsonl').read_text().splitlines()[-1])


def test_the_share_of_the_peak_is_that_of_the_counted_products(tmp_path):
    images = torch.rand(60, 3, 8, 8)
    line = last_line(tmp_path / 'a', images, peak_flops=1e9)
    # 64 pixels, 9 multiply-adds each of two operations, once forward and twice backward.
    assert line['mfu'] == pytest.approx(line['images_per_second'] * 3 * 2 * 64 * 9 / 1e9)
    assert 0 <= line['data_wait'] <= 1 and 'MFU' in describe(line)
    unknown = last_line(tmp_path / 'b', images)
    assert unknown['mfu'] is None and 'MFU' not in describe(unknown)
    with pytest.raises(ValueError, match='peak_flops must be above 0; got 0'):
        last_line(tmp_path / 'c', images, peak_flops=0.0)


def test_waiting_for_data_is_seen(tmp_path):
    line = last_line(tmp_path, Slow())
    seconds = 10 * 8 / line['images_per_second']  # between the two lines
    assert 10 * 8 * 0.002 <= line['data_wait'] * seconds <= seconds
    assert 'waits for data' in describe({**line, 'data_wait': 0.4})
    assert 'waits for data' not in describe({**line, 'data_wait': 0.01})


def test_operations_of_training_are_those_of_a_step(tiny):
    experiment = Experiment.open(tiny(('model', 'dropout_rate', 0.0)))
    denoiser, device = experiment.denoiser, torch.device('cpu')
    with FlopCounterMode(display=False) as counter:
        random_batch_loss(denoiser, experiment.sections, 4, device).backward()
    counted = count_item_flops(denoiser, experiment.sections, device, own=False)
    # (The first layers have no gradient of their input.)
    assert 0.9 < counter.get_total_flops() / 4 / counted <= 1.001
    again = count_item_flops(denoiser, experiment.sections, device, own=True)
    assert again == pytest.approx(counted, rel=0.01)


def test_gpus_are_known_by_the_names_that_drivers_give():
    rates = {
        'NVIDIA H100 80GB HBM3': 989e12,
        'NVIDIA H100 PCIe': 756e12,
        'NVIDIA H200': 989e12,
        'NVIDIA A100-SXM4-80GB': 312e12,
        'NVIDIA L4': 121e12,
        'Tesla V100-SXM2-32GB': 125e12,
        'NVIDIA GeForce RTX 4090': 165e12,
        'h100': 989e12,
    }
    assert {name: find_gpu(name).bf16 for name in rates} == rates
    assert find_gpu('NVIDIA A100-SXM4-40GB').memory == 40e9
    assert find_gpu('NVIDIA A100-SXM4-80GB').memory == 80e9
    for name in ('NVIDIA GeForce RTX 4090 Laptop GPU', 'NVIDIA H100 80GB HBM3 MIG 1g.10gb', 'x'):
        assert find_gpu(name) is None
    assert peak_flops(torch.device('cpu')) is None
