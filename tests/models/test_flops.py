"""Multiply-adds: by hand, and half of what torch counts on the meta device."""

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from k_diffusion.models import ImageDenoiserModelV1, flops


def test_by_hand():
    x, weight = torch.randn(2, 5, 3), torch.randn(7, 3)
    q, k, v = torch.randn(2, 4, 9, 8), torch.randn(2, 4, 6, 8), torch.randn(2, 4, 6, 8)
    with flops.flop_counter() as counter:
        F.linear(x, weight)
        assert counter.flops == 2 * 5 * 3 * 7 == flops.op_linear(x, weight)
        F.scaled_dot_product_attention(q, k, v)
    assert counter.flops - 210 == 2 * 4 * 9 * 6 * (8 + 8) == flops.op_attention(q, k, v)
    with flops.flop_counter() as counter:
        F.conv2d(torch.randn(1, 3, 8, 8), torch.randn(5, 3, 3, 3), padding=1)
    assert counter.flops == 64 * 5 * 27


def test_a_foreign_kernel_reports_itself():
    q = torch.empty(2, 4, 16, 16, 8)
    flops.op(flops.op_natten, q, q, q, 7)  # nobody counts
    with flops.flop_counter() as outer:
        flops.op(flops.op_natten, q, q, q, 7)
        with flops.flop_counter() as inner:
            flops.op(flops.op_linear, torch.empty(3, 2), torch.empty(5, 2))
        with flops.flop_counter(enable=False) as off:
            flops.op(flops.op_linear, torch.empty(3, 2), torch.empty(5, 2))
            torch.empty(3, 2) @ torch.empty(2, 5)
    assert (inner.flops, off.flops) == (30, 0)
    assert (
        outer.flops == 2 * 4 * 16 * 16 * 16 * 49 + 30
    )  # inner and disabled counters do not hide work from torch's own


def test_the_unet_agrees_with_torch_on_every_device():
    def model():
        return ImageDenoiserModelV1(
            1, 16, [1, 1], [16, 32], [False, True], [False, True], cross_cond_dim=8, patch_size=2
        )

    def run(model, device):
        model(
            torch.ones(2, 1, 16, 16, device=device),
            torch.ones(2, device=device),
            cross_cond=torch.ones(2, 3, 8, device=device),
        )

    with torch.device('meta'):
        on_meta = model()
    with FlopCounterMode(display=False) as theirs:
        run(on_meta, 'meta')
    with flops.flop_counter() as meta:
        run(on_meta, 'meta')
    with flops.flop_counter() as cpu:
        run(model(), 'cpu')
    assert theirs.get_total_flops() == 2 * meta.flops == 2 * cpu.flops > 0
