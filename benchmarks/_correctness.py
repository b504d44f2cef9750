"""Every network, sampler, attention path and generator of noise on a device against the CPU."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from _timing import awake
from torch import Tensor, nn

from k_diffusion import sampling
from k_diffusion.config import Experiment
from k_diffusion.core.modules import tf32_mode
from k_diffusion.denoisers.analytic import Gaussian
from k_diffusion.layers.neighborhood import neighborhood_mask
from k_diffusion.layers.neighborhood_backends import BACKENDS, why_not_natten
from k_diffusion.models.sizing import example

#: The largest relative error (of the root mean square) that passes, by the type of the numbers.
LIMITS = {'fp32': 1e-3, 'bf16': 0.05}
#: bf16 keeps 8 bits: rounding after each step of a sampler adds up.
SAMPLER_LIMITS = {'fp32': 1e-3, 'bf16': 0.1}

_NOISE = {
    'input_channels': 3,
    'sigma_min': 0.01,
    'sigma_max': 80.0,
    'sigma_data': 0.5,
    'sigma_sample_density': {'type': 'lognormal', 'mean': -1.0, 'std': 1.2},
}
_UNET = {
    'mapping_out': 64,
    'depths': [1, 2],
    'channels': [64, 128],
    'self_attn_depths': [False, True],
}
_LEVELS = {'patch_size': [2, 2], 'depths': [1, 1], 'widths': [128, 128]}
_GLOBAL = {'type': 'global', 'd_head': 64}
Row = dict[str, Any]


def neighborhood(backend: str) -> Row:
    """Return a level of attention to 7 x 7 tokens."""
    return {'type': 'neighborhood', 'd_head': 64, 'kernel_size': 7, 'backend': backend}


def attention_backends(device: torch.device) -> list[str]:
    """Return the backends of neighbourhood attention that a device has."""
    if device.type != 'cuda':
        return ['tiles']
    return ['tiles', 'flex'] + (['natten'] if why_not_natten() is None else [])


def sections(device: torch.device) -> dict[str, tuple[Row, Row]]:
    """Return the "model" sections by name: for the CPU and for the device."""
    windows = {'type': 'shifted-window', 'd_head': 64, 'window_size': 4}
    plain: dict[str, Row] = {
        'image_v1': {'type': 'image_v1', **_UNET},
        'image_v1, cross-attention': {
            'type': 'image_v1',
            **_UNET,
            'cross_attn_depths': [False, True],
            'cross_cond_dim': 32,
        },
        'image_v1, 1-D': {'type': 'image_v1', 'dims': 1, 'input_size': [64], **_UNET},
        'image_v1, 3-D': {'type': 'image_v1', 'dims': 3, 'input_size': [8, 8, 8], **_UNET},
        'image_v2': {'type': 'image_v2', **_UNET},
        'image_transformer_v1': {
            'type': 'image_transformer_v1',
            'patch_size': [4, 4],
            'depth': 2,
            'width': 128,
        },
        'image_transformer_v2, windows': {
            'type': 'image_transformer_v2',
            **_LEVELS,
            'self_attns': [windows, _GLOBAL],
        },
    }
    pairs = {name: (section, section) for name, section in plain.items()}
    for backend in attention_backends(device):
        both = [
            {
                'type': 'image_transformer_v2',
                **_LEVELS,
                'self_attns': [neighborhood(b), _GLOBAL],
            }
            for b in ('tiles', backend)
        ]
        pairs[f'image_transformer_v2, {backend}'] = (both[0], both[1])
    return pairs


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """Return the root mean square of the difference over that of the exact values."""
    actual, exact = actual.detach().cpu().double(), exact.detach().cpu().double()
    return float((actual - exact).norm() / exact.norm())


def row(kind: str, name: str, dtype: str, error: float, limit: float) -> Row:
    """Return a line of the report."""
    ok = error <= limit  # (an error that is not a number fails)
    return {'kind': kind, 'name': name, 'dtype': dtype, 'error': error, 'limit': limit, 'ok': ok}


def check_networks(device: torch.device) -> Iterator[Row]:
    """Compare the output and the gradient with respect to x of each network."""
    for name, (section, on_device) in sections(device).items():
        model = {**_NOISE, 'input_size': [16, 16], **section}
        torch.manual_seed(0)
        reference = Experiment.open({'model': model, 'dataset': {'type': 'demo'}})
        network = awake(reference.network).eval()
        other = {**_NOISE, 'input_size': [16, 16], **on_device}
        with torch.device(device):
            copy_there = Experiment.open({'model': other, 'dataset': {'type': 'demo'}}).network
        copy_there = copy.deepcopy(copy_there).to(device).eval()
        copy_there.load_state_dict(network.state_dict())
        (x, sigma), cond = example(reference.sections.model, 0, 2)
        x, sigma = torch.randn_like(x), torch.tensor([0.3, 2.0])
        # (Of the mapping's conditions there are those of augmentation alone, zeros by default.)
        cond = {k: torch.randn(v.shape) for k, v in cond.items() if k != 'mapping_cond'}
        exact = _out_and_gradient(network, x, sigma, cond)
        there = x.to(device), sigma.to(device), {k: v.to(device) for k, v in cond.items()}
        for dtype, limit in LIMITS.items():
            with torch.autocast(device.type, torch.bfloat16, enabled=dtype == 'bf16'):
                actual = _out_and_gradient(copy_there, *there)
            error = max(relative_error(a, b) for a, b in zip(actual, exact))
            yield row('network', name, dtype, error, limit)


def _out_and_gradient(
    network: nn.Module, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    out = network(x, sigma, **cond)
    out = out[0] if isinstance(out, tuple) else out
    (gradient,) = torch.autograd.grad(out.float().square().mean(), x)
    return out, gradient


def check_attention(device: torch.device) -> Iterator[Row]:
    """Compare neighbourhood attention with dense attention under a mask, on the CPU."""
    side, kernel_size = 16, 7
    q, k, v = torch.randn(3, 2, side, side, 2, 64, generator=torch.Generator().manual_seed(0))
    mask = neighborhood_mask(side, side, kernel_size, 'cpu')
    flat = (t.flatten(1, 2).transpose(1, 2) for t in (q, k, v))
    dense = F.scaled_dot_product_attention(*flat, mask, scale=0.125)
    exact = dense.transpose(1, 2).reshape(q.shape)
    for backend in attention_backends(device):
        for dtype, limit in LIMITS.items():
            kind = torch.bfloat16 if dtype == 'bf16' else torch.float32
            there = (t.to(device, kind) for t in (q, k, v))
            actual = BACKENDS[backend](*there, kernel_size, 0.125)
            yield row('attention', backend, dtype, relative_error(actual, exact), limit)


class Exact:
    """The denoiser of a Gaussian, guided or not."""

    def __init__(self, device: torch.device) -> None:
        mean = torch.linspace(-0.5, 0.5, 64).view(1, 8, 8)
        std = torch.linspace(0.2, 0.8, 64).view(1, 8, 8)
        self.gaussian = Gaussian(mean.to(device), std.to(device))

    def __call__(self, x: Tensor, sigma: Any, **cond: Any) -> Tensor:
        sigma = torch.as_tensor(sigma, device=x.device, dtype=torch.float32).expand(len(x))
        return self.gaussian(x.float(), sigma).to(x.dtype)

    def pair(self, x: Tensor, sigma: Any, **cond: Any) -> tuple[Tensor, Tensor]:
        """Return the guided and the unconditional estimate."""
        return self(x, sigma), 0.9 * self(x, sigma)


def host_noise(x: Tensor) -> Callable[..., Tensor]:
    """Return a noise sampler that draws on the CPU, alike for every device."""
    source = torch.Generator().manual_seed(1)

    def draw(*_: Any) -> Tensor:
        return torch.randn(x.shape, generator=source).to(x)

    return draw


def check_samplers(device: torch.device) -> Iterator[Row]:
    """Compare the result of every sampler with the exact denoiser of a Gaussian."""
    sigmas = sampling.get_sigmas_karras(10, 0.03, 15.0)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 15.0
    for name, entry in sampling.SAMPLERS.items():
        exact = _sample(entry, x, sigmas)
        for dtype, limit in SAMPLER_LIMITS.items():
            kind = torch.bfloat16 if dtype == 'bf16' else torch.float32
            actual = _sample(entry, x.to(device, kind), sigmas.to(device))
            yield row('sampler', name, dtype, relative_error(actual, exact), limit)


def _sample(entry: Any, x: Tensor, sigmas: Tensor) -> Tensor:
    arguments = {'sigmas': sigmas, 'sigma_min': 0.03, 'sigma_max': 15.0, 'n': 10}
    options = {key: arguments[key] for key in entry.takes}
    if 'noise_sampler' in inspect.signature(entry.function).parameters:
        options['noise_sampler'] = host_noise(x)
    result: Tensor = entry.function(Exact(x.device), x, disable=True, **options)
    return result


def check_generator(device: torch.device) -> Iterator[Row]:
    """Compare noise per item: from a counter, alike on every device."""
    try:
        from k_diffusion.core.philox import draw_normals
    except ImportError:
        return
    exact, actual = (draw_normals(7, [0, 5, 2**40], (3, 33), where) for where in ('cpu', device))
    yield row('generator', 'draw_normals', 'fp32', relative_error(actual, exact), 1e-5)


def check_all(device: torch.device) -> list[Row]:
    """Return a line for each comparison, in full precision (without TF32) and in bf16."""
    with tf32_mode(cudnn=False, matmul=False):
        return [
            line
            for check in (check_networks, check_attention, check_samplers, check_generator)
            for line in check(device)
        ]
