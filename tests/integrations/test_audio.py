"""The sampling functions of stable-audio-tools and harmonai-tools over this k_diffusion, on data
whose flow is known.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import k_diffusion as K

STD = 0.5


def load(package: str) -> Any:
    """Load a package's inference/sampling.py by itself: its siblings need programs that do not
    install beside ours.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f'{package} is not installed')
    path = Path(spec.submodule_search_locations[0]) / 'inference' / 'sampling.py'
    file_spec = importlib.util.spec_from_file_location(f'{package}_sampling', path)
    assert file_spec is not None and file_spec.loader is not None
    module = importlib.util.module_from_spec(file_spec)
    file_spec.loader.exec_module(module)
    return module


def white_noise(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
    """The v model of independent Gaussian data [B, C, L] of deviation STD: v = alpha noise -
    sigma clean, alpha = cos(pi t / 2).
    """
    alpha, sigma = (f(t * math.pi / 2).reshape(-1, 1, 1) for f in (torch.cos, torch.sin))
    return alpha * sigma * (1 - STD**2) / (alpha**2 * STD**2 + sigma**2) * x


@pytest.mark.parametrize('package', ['stable_audio_tools', 'harmonai_tools'])
@pytest.mark.parametrize(
    'name',
    [
        'k-heun',
        'k-lms',
        'k-dpm-2',
        'k-dpm-fast',
        'k-dpm-adaptive',
        'k-dpmpp-2s-ancestral',
        'dpmpp-2m',
        'dpmpp-2m-sde',
        'dpmpp-3m-sde',
    ],
)
def test_their_samplers_reach_the_data(package: str, name: str) -> None:
    tools = load(package)
    if package == 'harmonai_tools' and name in ('dpmpp-2m', 'dpmpp-3m-sde'):
        pytest.skip('harmonai-tools does not offer it')
    noise = torch.randn(2, 8, 128, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    shape = {} if package == 'stable_audio_tools' else {'mask': None}
    output = tools.sample_k(
        white_noise,
        noise,
        **shape,
        steps=100,
        sampler_type=name,
        sigma_min=0.01,
        sigma_max=50.0,
        rho=1.0,
        device='cpu',
    )
    if 'sde' in name or 'ancestral' in name:  # 2,048 draws: the deviation is known to 1.6 %
        assert output.std().item() == pytest.approx(STD, rel=0.05)
    # the flow of Gaussian data takes x to x STD / sqrt(STD^2 + sigma_max^2); two of them end at
    # sigma_min
    else:
        end = 0.01 if name in ('k-dpm-fast', 'k-dpm-adaptive') else 0.0
        scale = 50.0 * math.sqrt((STD**2 + end**2) / (STD**2 + 50.0**2))
        rtol = 0.03 if name == 'k-dpm-adaptive' else 0.01  # its own tolerance, each step, is 0.01
        torch.testing.assert_close(output, noise * scale, rtol=rtol, atol=1e-3)


@pytest.mark.parametrize('theirs, ours', [('euler', 'euler'), ('dpmpp', 'dpmpp_2m')])
def test_their_rectified_flow_is_walked_alike(theirs: str, ours: str) -> None:
    """Their own sampler of a flow, and ours of the same network as a FlowDenoiser from the same
    x at the same times.
    """
    tools = load('stable_audio_tools')
    side = torch.linspace(-1.0, 1.0, 64)

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        """noise - clean for clean data +-side of deviation 0.3."""
        time = t.reshape(-1, 1, 1)
        total = 0.09 * (1 - time) ** 2 + time**2
        mean = torch.tanh((x_t * side).sum((1, 2), keepdim=True) * (1 - time) / total) * side
        clean = mean + 0.09 * (1 - time) * (x_t - (1 - time) * mean) / total
        return (x_t - clean) / time

    noise, first = torch.randn(2, 1, 64, generator=torch.Generator().manual_seed(0)), 0.995
    times: list[float] = []

    def record(x_t: Tensor, t: Tensor) -> Tensor:
        times.append(float(t[0]))
        return network(x_t, t)

    expected = tools.sample_rf(
        record, noise, steps=12, sampler_type=theirs, sigma_max=first, device='cpu'
    )
    levels = [t / (1 - t) for t in times] + [0.0]
    actual = K.sample(
        K.external.FlowDenoiser(network), noise / (1 - first), sampler=ours, schedule=levels
    )
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
