"""CFG-Zero*, tangential damping, frequency bands, epsilon scaling, other levels, and the first
steps.
"""

import itertools
import math

import pytest
import torch

import k_diffusion as K
from k_diffusion.guidance import (
    cfg_zero_star,
    classifier_free,
    detail,
    epsilon_scaling,
    frequency_decoupled,
    interval_of_first_steps,
    tangential_damping,
)

NULL = {'c': 0}
MAKERS = {
    'cfg_zero_star': lambda f, scale, **k: cfg_zero_star(f, NULL, scale, **k),
    'tangential_damping': lambda f, scale, **k: tangential_damping(f, NULL, scale, **k),
    'frequency_decoupled': lambda f, scale, **k: frequency_decoupled(f, NULL, (scale, scale), **k),
}


def denoise(x, sigma, c):
    pixels = torch.arange(x[0].numel(), dtype=x.dtype).view_as(x[0])
    return x / (1 + sigma.view(-1, 1, 1, 1) ** 2) + c.view(-1, 1, 1, 1).to(x) * (pixels / 7).sin()


def make_inputs(n=4, dtype=torch.float64):
    return (
        torch.randn(n, 2, 5, 6, dtype=dtype),
        torch.tensor([0.1, 0.5, 1.0, 3.0], dtype=dtype)[:n],
        {'c': torch.tensor([1, 2, 3, 4])[:n]},
    )


def counted():
    def ask(x, sigma, **cond):
        ask.calls.append(len(x))
        return denoise(x, sigma, **cond)

    ask.calls = []
    return ask


@pytest.mark.parametrize('name', MAKERS)
def test_what_every_guidance_keeps(name):
    x, sigma, cond = make_inputs()
    ask, plain = counted(), denoise(x, sigma, **cond)
    assert torch.equal(MAKERS[name](ask, 1.0)(x, sigma, **cond), plain) and ask.calls == [4]
    inner = MAKERS[name](ask, 4.0, interval=(0.3, 1.0))(x, sigma, **cond)
    assert (
        torch.equal(inner[[0, 3]], plain[[0, 3]])
        and (inner[1:3] != plain[1:3]).any()
        and ask.calls == [4, 8]
    )
    assert torch.equal(
        MAKERS[name](ask, 4.0, interval=(5.0, 9.0))(x, sigma, **cond), plain
    ) and ask.calls == [4, 8, 4]
    joined, split = (
        MAKERS[name](denoise, 3.0)(x, sigma, **cond),
        MAKERS[name](ask, 3.0, joined=False)(x, sigma, **cond),
    )
    torch.testing.assert_close(joined, split)
    assert ask.calls[-2:] == [4, 4]
    guided, unconditional = MAKERS[name](denoise, 3.0).pair(x, sigma, **cond)
    torch.testing.assert_close(guided, joined)
    torch.testing.assert_close(unconditional, denoise(x, sigma, torch.zeros(4)))
    one_level = MAKERS[name](denoise, 3.0)(x, torch.tensor([0.5], dtype=x.dtype), **cond)
    torch.testing.assert_close(
        one_level, MAKERS[name](denoise, 3.0)(x, torch.full((4,), 0.5, dtype=x.dtype), **cond)
    )


def flow_velocity(x_t, t, c):
    """A network of a flow, x_t = (1 - t) data + t noise, that predicts noise - data."""
    return torch.sin(x_t) * t.view(-1, 1, 1, 1) + 0.3 * c.view(-1, 1, 1, 1)


def test_cfg_zero_star_is_the_papers_loop_in_the_frame_of_the_flow():
    """Algorithm 1 written out: Euler steps in t, nothing in the first, then (1 - w) s v_u + w
    v_c.
    """
    c, levels, scale = (
        torch.tensor([1.0, 2.0]).double(),
        torch.tensor([0.99, 0.8, 0.5, 0.2, 0.0]).double(),
        3.0,
    )
    start = torch.randn(2, 1, 3, 3, dtype=torch.float64)
    state = start
    for i, (t, after) in enumerate(itertools.pairwise(levels)):
        v_c, v_u = (flow_velocity(state, t.expand(2), each) for each in (c, c * 0))
        s = (v_c * v_u).sum((1, 2, 3), keepdim=True) / v_u.square().sum((1, 2, 3), keepdim=True)
        v = torch.zeros_like(state) if i == 0 else (1 - scale) * s * v_u + scale * v_c
        state = state + (after - t) * v

    def denoiser(x, sigma, c):
        t = sigma / (1 + sigma)
        x_t = x / (1 + sigma.view(-1, 1, 1, 1))
        return x_t - t.view(-1, 1, 1, 1) * flow_velocity(x_t, t, c)

    sigmas = levels / (1 - levels)
    guided = cfg_zero_star(denoiser, NULL, scale, zero_above=math.sqrt(sigmas[0] * sigmas[1]))
    actual = K.sampling.sample_euler(
        guided, start * (1 + sigmas[0]), sigmas, extra_args={'c': c}, disable=True
    )
    torch.testing.assert_close(actual, state, atol=1e-9, rtol=1e-9)


def test_nothing_moves_above_a_level_and_no_call_is_made():
    x, sigma, cond = make_inputs()
    ask = counted()
    still = cfg_zero_star(ask, NULL, 1.0, zero_above=0.05)
    torch.testing.assert_close(still(x, sigma, **cond), x / (1 + sigma.view(-1, 1, 1, 1)))
    assert ask.calls == [] and len(still.pair(x, sigma, **cond)) == 2
    part = cfg_zero_star(ask, NULL, 1.0, zero_above=0.7)(x, sigma, **cond)
    assert torch.equal(part[:2], denoise(x, sigma, **cond)[:2]) and not torch.equal(
        part[2:], denoise(x, sigma, **cond)[2:]
    )


@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_tangential_damping_is_the_first_singular_direction(dtype, tolerance):
    x, sigma, cond = make_inputs(dtype=dtype)
    for gain in 1.0, 1e-3:  # estimates that differ, and such that nearly agree
        model = lambda x, sigma, c, gain=gain: denoise(x, sigma, c * gain)
        actual = tangential_damping(model, NULL, 5.0)(x, sigma, **cond).double()
        wide = x.double()
        d_c, d_u = (model(wide, sigma.double(), c) for c in (cond['c'], torch.zeros(4)))
        for i in range(4):
            rows = torch.stack([(wide - d_u)[i].flatten(), (wide - d_c)[i].flatten()])
            v = torch.linalg.svd(rows, full_matrices=False).Vh[0]
            damped = wide[i].flatten() - (rows[0] @ v) * v
            torch.testing.assert_close(
                actual[i].flatten(),
                torch.lerp(damped, d_c[i].flatten(), 5.0),
                atol=tolerance,
                rtol=tolerance,
            )


def test_bands_of_equal_strength_are_classifier_free_guidance():
    x, sigma, cond = make_inputs()
    plain = classifier_free(denoise, NULL, 4.0)(x, sigma, **cond)
    for n in 1, 2, 5:
        torch.testing.assert_close(
            frequency_decoupled(denoise, NULL, (4.0,) * n)(x, sigma, **cond), plain
        )


def test_a_flat_push_is_in_the_coarse_band_and_a_fine_one_in_the_fine():
    x, sigma = torch.zeros(1, 1, 16, 16).double(), torch.ones(1).double()
    board = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1
    for shape, scales, size in (torch.ones(16, 16), (9.0, 2.0), 2.0), (board, (9.0, 2.0), 9.0):
        model = lambda x, sigma, c, shape=shape: x + c.view(-1, 1, 1, 1) * shape
        actual = frequency_decoupled(model, NULL, scales)(x, sigma, c=torch.ones(1))[0, 0]
        torch.testing.assert_close(
            actual[4:-4, 4:-4], size * shape.double()[4:-4, 4:-4], atol=1e-3, rtol=0
        )
    video = torch.randn(2, 3, 4, 6, 6)
    guided = frequency_decoupled(
        lambda x, sigma, c: x.sin() * c.view(-1, *[1] * (x.ndim - 1)), NULL, (3.0, 1.0)
    )
    frames, alone = (guided(x, torch.ones(2), c=torch.ones(2)) for x in (video, video[:, :, 1]))
    torch.testing.assert_close(frames[:, :, 1], alone)


def test_epsilon_scaling_divides_the_noise():
    x, sigma, cond = make_inputs()
    noise = (x - denoise(x, sigma, **cond)) / sigma.view(-1, 1, 1, 1)
    actual = epsilon_scaling(denoise, 1.05)(x, sigma, **cond)
    torch.testing.assert_close((x - actual) / sigma.view(-1, 1, 1, 1), noise / 1.05)
    per_level = epsilon_scaling(denoise, lambda sigma: 1 + sigma / 10)(x, sigma, **cond)
    torch.testing.assert_close((x - per_level)[3] / 3, noise[3] / 1.3)
    assert torch.equal(epsilon_scaling(denoise, 1.0)(x, sigma, **cond), denoise(x, sigma, **cond))


def test_detail_asks_at_another_level():
    x, sigma, cond = make_inputs()
    torch.testing.assert_close(
        detail(denoise, 0.1)(x, sigma, **cond), denoise(x, sigma * 0.9, **cond)
    )
    torch.testing.assert_close(
        detail(denoise, lambda s: s / 10)(x, sigma, **cond),
        denoise(x, sigma * (1 - sigma / 10), **cond),
    )
    inner = detail(denoise, 0.1, (0.3, 1.0))(x, sigma, **cond)
    torch.testing.assert_close(
        inner, denoise(x, torch.tensor([0.1, 0.45, 0.9, 3.0]).double(), **cond)
    )
    assert torch.equal(detail(denoise, 0.0)(x, sigma, **cond), denoise(x, sigma, **cond))


@pytest.mark.parametrize(
    'wrap',
    [lambda f: epsilon_scaling(f, 1.1), lambda f: detail(f, 0.1)],
    ids=['epsilon_scaling', 'detail'],
)
def test_wrappers_have_a_pair_where_the_denoiser_has_one(wrap):
    x, sigma, cond = make_inputs()
    assert not hasattr(wrap(denoise), 'pair')
    guided, unconditional = wrap(classifier_free(denoise, NULL, 3.0)).pair(x, sigma, **cond)
    torch.testing.assert_close(guided, wrap(classifier_free(denoise, NULL, 3.0))(x, sigma, **cond))
    torch.testing.assert_close(unconditional, wrap(denoise)(x, sigma, c=torch.zeros(4)))


@pytest.mark.parametrize('share, guided', [(0.0, 0), (0.5, 5), (0.7, 7), (1.0, 10)])
def test_guidance_of_the_first_share_of_steps(share, guided):
    sigmas, ask = K.sampling.get_sigmas_karras(10, 0.1, 10.0), counted()
    model = classifier_free(ask, NULL, 3.0, interval_of_first_steps(sigmas, share))
    K.sampling.sample_euler(
        model, torch.randn(1, 2, 5, 6) * 10, sigmas, extra_args={'c': torch.ones(1)}, disable=True
    )
    assert ask.calls == [2] * guided + [1] * (10 - guided)


@pytest.mark.parametrize('name', MAKERS)
def test_samplers_of_cfg_pp_take_them(name):
    x, sigmas = torch.randn(2, 2, 5, 6) * 10, K.sampling.get_sigmas_karras(8, 0.1, 10.0)
    out, plain = (
        K.sampling.sample_euler_cfg_pp(
            f, x, sigmas, extra_args={'c': torch.tensor([1, 2])}, disable=True
        )
        for f in (MAKERS[name](denoise, 0.6), classifier_free(denoise, NULL, 1.0))
    )
    assert out.isfinite().all() and not torch.allclose(out, plain)


@pytest.mark.parametrize(
    'wrong, message',
    [
        (
            lambda: cfg_zero_star(denoise, NULL, 2.0, zero_above=-1.0),
            'zero_above must be a number >= 0',
        ),
        (lambda: cfg_zero_star(denoise, NULL, math.nan), 'scale must be a finite number'),
        (lambda: tangential_damping(denoise, NULL, 2.0, (3.0, 1.0)), 'the lower one first'),
        (
            lambda: frequency_decoupled(denoise, NULL, 3.0),
            'scales must be a strength for each band',
        ),
        (lambda: frequency_decoupled(denoise, NULL, ()), 'scales must be a strength for each band'),
        (
            lambda: frequency_decoupled(denoise, NULL, (1.0, math.inf)),
            'scale must be a finite number',
        ),
        (
            lambda: frequency_decoupled(lambda x, sigma, c: x, NULL, (2.0, 1.0))(
                torch.ones(2, 3), torch.ones(2), c=torch.ones(2)
            ),
            'a height and a width',
        ),
        (lambda: epsilon_scaling(denoise, 0.0), 'factor must be > 0'),
        (lambda: detail(denoise, 1.0), 'amount must be < 1'),
        (lambda: detail(denoise, '0.1'), 'amount must be a finite number'),
        (
            lambda: interval_of_first_steps(torch.tensor([1.0, 0.0]), 1.5),
            r'share must be in \[0, 1\]',
        ),
        (lambda: interval_of_first_steps(torch.tensor(3.0), 0.5), 'at least two descending levels'),
    ],
)
def test_refusals(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
