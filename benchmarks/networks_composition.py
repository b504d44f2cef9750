"""image_transformer_v2 against a plain eager composition of the same network, with the same
weights: training steps.

    python benchmarks/networks_composition.py [--batch-size 16] [--rounds 15] [--bf16]
        [--compile] [--device cuda]

The composition is what one writes down first: norms, cosine normalisation, its scale and the
rotation (by rotate-half, over all features) as operations of their own, one product for both halves
of a gated unit, windows by roll and reshape after the projection, neighbourhoods as attention of
all to all under a mask. Both are checked to give the same numbers, and run in turn within each
round; the median round of each counts. A step is forward and backward.
"""

from __future__ import annotations

import argparse
import copy
import math
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from _timing import awake, training_seconds
from torch import Tensor, nn

from k_diffusion.core.memory import keep_freed_memory
from k_diffusion.core.modules import n_params
from k_diffusion.layers.neighborhood import neighborhood_mask
from k_diffusion.models import ImageTransformerV2Config
from k_diffusion.models.cosine_attention import (
    CosineAttentionBlock,
    NeighborhoodSelfAttentionBlock,
    ShiftedWindowSelfAttentionBlock,
)
from k_diffusion.models.transformer_blocks import AdaRMSNorm, LinearGEGLU, RMSNorm
from k_diffusion.models.windows import make_shifted_window_masks

NOISE = {
    'input_channels': 1,
    'sigma_min': 0.01,
    'sigma_max': 80.0,
    'sigma_sample_density': {'type': 'cosine-interpolated'},
}
GLOBAL = {'type': 'global', 'd_head': 64}
WINDOWS = {'type': 'shifted-window', 'd_head': 64, 'window_size': 7}
NEAR = {'type': 'neighborhood', 'd_head': 64, 'kernel_size': 7}
#: name -> what differs between the networks; they see 28x28 pictures where nothing else is said.
NETWORKS: dict[str, dict[str, Any]] = {
    'windows, 10 M': {
        'patch_size': [2, 2],
        'depths': [2, 4],
        'widths': [192, 320],
        'self_attns': [WINDOWS, GLOBAL],
    },
    'windows, 2.5 M': {
        'patch_size': [2, 2],
        'depths': [2, 2],
        'widths': [128, 192],
        'self_attns': [WINDOWS, GLOBAL],
        'mapping_width': 128,
    },
    'windows, 2 M, 28x28 tokens': {
        'patch_size': [1, 1],
        'depths': [2, 2],
        'widths': [64, 192],
        'self_attns': [WINDOWS, WINDOWS],
        'mapping_width': 128,
    },
    'neighbourhoods, 10 M': {
        'patch_size': [2, 2],
        'depths': [2, 4],
        'widths': [192, 320],
        'self_attns': [NEAR, GLOBAL],
    },
    'neighbourhoods, 2 M, 28x28 tokens': {
        'patch_size': [1, 1],
        'depths': [2, 2],
        'widths': [64, 192],
        'self_attns': [NEAR, NEAR],
        'mapping_width': 128,
    },
    'neighbourhoods, 2 M, 56x56 tokens': {
        'input_size': [56, 56],
        'patch_size': [1, 1],
        'depths': [2, 2],
        'widths': [64, 192],
        'self_attns': [NEAR, NEAR],
        'mapping_width': 128,
    },
    'global, config_mnist_transformer': {
        'patch_size': [4, 4],
        'depths': [8],
        'widths': [256],
        'self_attns': [GLOBAL],
    },
}


def rms_norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    wide = x.float()
    mean = torch.mean(wide**2, dim=-1, keepdim=True)
    return (wide * (scale.float() * torch.rsqrt(mean + eps))).to(x.dtype)


def plain_ada(self: AdaRMSNorm, x: Tensor, cond: Tensor) -> Tensor:
    return rms_norm(x, self.linear(cond)[:, None, None, :] + 1, self.eps)


def plain_norm(self: RMSNorm, x: Tensor) -> Tensor:
    return rms_norm(x, self.scale, self.eps)


def plain_geglu(self: LinearGEGLU, x: Tensor) -> Tensor:
    value, gate = F.linear(x, self.weight, self.bias).chunk(2, dim=-1)
    return value * F.gelu(gate)


def rotate_half(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat([-b, a], dim=-1)


def rotate(x: Tensor, theta: Tensor) -> Tensor:
    angles = torch.cat([theta, theta], dim=-1)
    front, rest = x[..., : angles.shape[-1]], x[..., angles.shape[-1] :]
    return torch.cat(
        [front * torch.cos(angles) + rotate_half(front) * torch.sin(angles), rest], dim=-1
    ).to(x.dtype)


def unit(x: Tensor, scale: Tensor) -> Tensor:
    length = torch.sqrt(torch.sum(x.float() ** 2, dim=-1, keepdim=True) + 1e-6)
    x = (x / length).to(x.dtype)
    return (x * torch.sqrt(scale)[:, None]).to(x.dtype)


def plain_attend(self: CosineAttentionBlock, x: Tensor, pos: Tensor) -> Tensor:
    batch, height, width, _ = x.shape
    q, k, v = (
        self.qkv_proj(x)
        .reshape(batch, height, width, 3, self.n_heads, self.d_head)
        .permute(3, 0, 1, 2, 4, 5)
    )
    theta = self.pos_emb(pos)
    q, k = rotate(unit(q, self.scale), theta), rotate(unit(k, self.scale), theta)
    if isinstance(self, ShiftedWindowSelfAttentionBlock):
        return plain_windows(self.window_size, self.window_shift, q, k, v).reshape(x.shape)
    mask = (
        neighborhood_mask(height, width, self.kernel_size, x.device)
        if isinstance(self, NeighborhoodSelfAttentionBlock)
        else None
    )
    q, k, v = (
        y.reshape(batch, height * width, self.n_heads, self.d_head).permute(0, 2, 1, 3)
        for y in (q, k, v)
    )
    return (
        F.scaled_dot_product_attention(q, k, v, mask, scale=1.0)
        .permute(0, 2, 1, 3)
        .reshape(x.shape)
    )


def plain_windows(size: int, shift: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, height, width, heads, d = q.shape
    n_h, n_w = height // size, width // size

    def cut(x: Tensor) -> Tensor:
        x = torch.roll(x, (shift, shift), dims=(1, 2)) if shift else x
        x = x.reshape(batch, n_h, size, n_w, size, heads, d).permute(0, 1, 3, 5, 2, 4, 6)
        return x.reshape(batch, n_h, n_w, heads, size * size, d)

    mask = (
        make_shifted_window_masks(n_h, n_w, size, size, shift, q.device)
        .flatten(4)
        .flatten(2, 3)[:, :, None]
        if shift
        else None
    )
    y = F.scaled_dot_product_attention(cut(q), cut(k), cut(v), mask, scale=1.0).reshape(
        batch, n_h, n_w, heads, size, size, d
    )
    y = y.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, height, width, heads, d)
    return torch.roll(y, (-shift, -shift), dims=(1, 2)) if shift else y


def composed(model: nn.Module) -> nn.Module:
    """A copy of the model that computes by the composition above."""
    model = copy.deepcopy(model)
    for module in model.modules():
        for kind, name, function in (
            (AdaRMSNorm, 'forward', plain_ada),
            (RMSNorm, 'forward', plain_norm),
            (LinearGEGLU, 'forward', plain_geglu),
            (CosineAttentionBlock, 'attend', plain_attend),
        ):
            if isinstance(module, kind):
                setattr(module, name, MethodType(function, module))
    return model


def measure(config: ImageTransformerV2Config, args: argparse.Namespace) -> dict[str, float]:
    """Seconds per sample of each."""
    torch.manual_seed(0)
    model = awake(config.build())
    variants = {'composition': composed(model), 'ours': model}
    batch_size = max(1, args.batch_size * 28**2 // math.prod(config.input_size))
    x, noise = torch.randn(2, batch_size, 1, *config.input_size)
    sigma = torch.rand(batch_size) + 0.1
    with torch.no_grad():
        difference = (variants['composition'](x, sigma) - model(x, sigma)).abs().max().item()
    if not difference < 1e-3:
        raise RuntimeError(f'the composition differs from the network by {difference}')
    networks: dict[str, Any] = dict(variants)
    if args.compile:
        networks['ours, compiled'] = torch.compile(model)
    seconds = training_seconds(networks, x, noise, sigma, args.rounds, args.device, args.bf16)
    return {name: value / batch_size for name, value in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--batch-size',
        type=int,
        default=16,
        help='of 28x28 pictures; fewer of larger ones (default: 16)',
    )
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--only', help='networks whose name has this in it')
    parser.add_argument('--bf16', action='store_true', help='under bf16 autocast')
    parser.add_argument('--compile', action='store_true', help='ours compiled, too')
    parser.add_argument('--device', default='cpu', help='cpu, cuda, mps (default: cpu)')
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as k-diffusion train does on a CPU
    if args.device != 'cpu':  # a default device makes every call of torch dearer
        torch.set_default_device(args.device)
    print('training samples/s, and times the composition')
    for name, changes in NETWORKS.items():
        if args.only and args.only not in name:
            continue
        config = ImageTransformerV2Config(**{'input_size': [28, 28], **NOISE, **changes})
        with torch.device('meta'):
            parameters = n_params(config.build())
        seconds = measure(config, args)
        rates = (
            f'{key} {1 / value:7.1f} ({seconds["composition"] / value:.2f})'
            for key, value in seconds.items()
        )
        print(f'{name + f" ({parameters / 1e6:.1f} M)":45}' + '   '.join(rates), flush=True)


if __name__ == '__main__':
    main()
