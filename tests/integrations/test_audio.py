"""The sampling functions of stable-audio-tools and harmonai-tools over this k_diffusion, on data whose flow is known."""
from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

STD = 0.5


def load(package: str) -> Any:
    """Load a package's inference/sampling.py by itself: its siblings need programs that do not install beside ours."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f'{package} is not installed')
    path = Path(spec.submodule_search_locations[0]) / 'inference' / 'sampling.py'
    found = importlib.util.spec_from_file_location(f'{package}_sampling', path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def white_noise(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
    """The v model of independent Gaussian data [B, C, L] of deviation STD: v = alpha noise - sigma clean, alpha = cos(pi t / 2)."""
    alpha, sigma = (f(t * math.pi / 2).reshape(-1, 1, 1) for f in (torch.cos, torch.sin))
    return alpha * sigma * (1 - STD ** 2) / (alpha ** 2 * STD ** 2 + sigma ** 2) * x


@pytest.mark.parametrize('package', ['stable_audio_tools', 'harmonai_tools'])
@pytest.mark.parametrize('name', ['k-heun', 'k-lms', 'k-dpm-2', 'k-dpm-fast', 'k-dpm-adaptive', 'k-dpmpp-2s-ancestral',
                                  'dpmpp-2m', 'dpmpp-2m-sde', 'dpmpp-3m-sde'])
def test_their_samplers_reach_the_data(package: str, name: str) -> None:
    tools = load(package)
    if package == 'harmonai_tools' and name in ('dpmpp-2m', 'dpmpp-3m-sde'):
        pytest.skip('harmonai-tools does not offer it')
    noise = torch.randn(2, 8, 128, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    shape = {} if package == 'stable_audio_tools' else {'mask': None}
    drawn = tools.sample_k(white_noise, noise, **shape, steps=100, sampler_type=name, sigma_min=0.01, sigma_max=50.,
                           rho=1., device='cpu')
    if 'sde' in name or 'ancestral' in name:        # 2,048 draws: the deviation is known to 1.6 %
        assert drawn.std().item() == pytest.approx(STD, rel=0.05)
    else:       # the flow of Gaussian data takes x to x STD / sqrt(STD^2 + sigma_max^2); two of them end at sigma_min
        end = 0.01 if name in ('k-dpm-fast', 'k-dpm-adaptive') else 0.
        scale = 50. * math.sqrt((STD ** 2 + end ** 2) / (STD ** 2 + 50. ** 2))
        rtol = 0.03 if name == 'k-dpm-adaptive' else 0.01      # its own tolerance, each step, is 0.01
        torch.testing.assert_close(drawn, noise * scale, rtol=rtol, atol=1e-3)
