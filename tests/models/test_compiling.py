"""The networks are one graph for torch's compiler, gradient checkpointing included."""

from __future__ import annotations

import pytest
import torch

from k_diffusion.core.modules import checkpointing
from k_diffusion.models import MODELS

NOISE = {
    'input_channels': 1,
    'input_size': [16, 16],
    'sigma_min': 0.01,
    'sigma_max': 80.0,
    'sigma_sample_density': {'type': 'cosine-interpolated'},
}
UNET = {
    'mapping_out': 16,
    'depths': [1, 1],
    'channels': [32, 32],
    'self_attn_depths': [False, True],
    'augment_wrapper': False,
}
KINDS = [
    {'type': 'shifted-window', 'd_head': 16, 'window_size': 4},
    {'type': 'neighborhood', 'd_head': 16, 'kernel_size': 3},
    {'type': 'global', 'd_head': 16},
]
SECTIONS = {
    'image_v1': UNET,
    'image_v2': UNET,
    'image_v3': UNET,
    'image_transformer_v1': {'patch_size': [4, 4], 'depth': 1, 'width': 64},
    'image_transformer_v2': {
        'patch_size': [1, 1],
        'depths': [2, 1, 1],
        'widths': [16, 16, 32],
        'self_attns': KINDS,
        'mapping_width': 16,
        'mapping_depth': 1,
    },
}


@pytest.mark.parametrize('name', SECTIONS)
def test_one_graph(name):
    torch._dynamo.reset()
    model = MODELS[name](**{'type': name, **NOISE, **SECTIONS[name]}).build()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    model, x, sigma = (
        model.double(),
        torch.randn(2, 1, 16, 16).double(),
        torch.tensor([0.3, 5.0]).double(),
    )
    expected = model(x, sigma)
    compiled = torch.compile(
        model, fullgraph=True, backend='eager'
    )  # raises where the graph would be broken
    with checkpointing():
        out = compiled(x, sigma)
        gradients = torch.autograd.grad(
            out.square().sum(), list(model.parameters()), allow_unused=True
        )
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    plain = torch.autograd.grad(
        expected.square().sum(), list(model.parameters()), allow_unused=True
    )
    for mine, theirs in zip(gradients, plain):
        if theirs is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_inductor_gives_the_same_outputs_and_gradients():
    """The default backend of torch.compile, on the network of the demo's type."""
    from torch._inductor import metrics

    torch._dynamo.reset()
    metrics.reset()
    model = MODELS['image_v3'](**{'type': 'image_v3', **NOISE, **SECTIONS['image_v3']}).build()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    x, sigma = torch.randn(2, 1, 16, 16), torch.tensor([0.3, 5.0])
    results = []
    for network in (model, torch.compile(model)):
        out = network(x, sigma)
        parameters = [p for p in model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(out.square().sum(), parameters, allow_unused=True)
        results.append([out, *(g for g in gradients if g is not None)])
    assert metrics.generated_kernel_count > 0
    for plain, compiled in zip(*results):
        scale = plain.abs().max().item()
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-4 * scale)
