"""Guidance by the difference of two estimates: laws that hold whatever the network."""

import math

import pytest
import torch

import k_diffusion as K
from k_diffusion.guidance import (
    adaptive_projected,
    autoguidance,
    classifier_free,
    composed,
    dynamic_thresholding,
    static_thresholding,
)


def denoise(x, sigma, class_cond, shift=0.0):
    """A denoiser whose answer tells its class, item by item and pixel by pixel."""
    pixels = torch.arange(x[0].numel(), dtype=x.dtype).view_as(x[0])
    return (
        x / (1 + sigma.view(-1, 1, 1, 1))
        + (class_cond.view(-1, 1, 1, 1).to(x) * (pixels / 7).sin())
        + shift
    )


def make_inputs(n=4):
    return (
        torch.randn(n, 1, 3, 4),
        torch.tensor([0.1, 0.5, 1.0, 3.0])[:n],
        {'class_cond': torch.tensor([1, 2, 3, 4])[:n], 'shift': 0.5},
    )


NULL = {'class_cond': 0}
MAKERS = {
    'classifier_free': lambda scale, f=denoise, **k: classifier_free(f, NULL, scale, **k),
    'adaptive_projected': lambda scale, f=denoise, **k: adaptive_projected(f, NULL, scale, **k),
    'autoguidance': lambda scale, f=denoise, **k: autoguidance(
        f, lambda x, sigma, **cond: f(x, sigma, **cond) * 0.9, scale, **k
    ),
}


def counted(f=denoise):
    def ask(x, sigma, **cond):
        ask.calls.append(len(x))
        return f(x, sigma, **cond)

    ask.calls = []
    return ask


@pytest.mark.parametrize('name', MAKERS)
def test_scale_1_is_a_no_op_to_the_last_bit(name):
    (x, sigma, cond), ask = make_inputs(), counted()
    guided = MAKERS[name](1.0, ask)
    assert torch.equal(guided(x, sigma, **cond), denoise(x, sigma, **cond)) and ask.calls == [4]
    assert torch.equal(guided.pair(x, sigma, **cond)[0], denoise(x, sigma, **cond))


@pytest.mark.parametrize('name', MAKERS)
def test_outside_the_interval_is_a_no_op_to_the_last_bit(name):
    (x, sigma, cond), ask = make_inputs(), counted()
    actual, plain = (
        MAKERS[name](4.0, ask, interval=(0.3, 1.0))(x, sigma, **cond),
        denoise(x, sigma, **cond),
    )
    assert torch.equal(actual[[0, 3]], plain[[0, 3]]) and (actual[1:3] != plain[1:3]).any()
    ask.calls.clear()
    assert torch.equal(
        MAKERS[name](4.0, ask, interval=(5.0, 9.0))(x, sigma, **cond), plain
    ) and ask.calls == [4]


@pytest.mark.parametrize('name', ['classifier_free', 'adaptive_projected'])
def test_joined_and_split_agree(name):
    x, sigma, cond = make_inputs()
    joined, split = counted(), counted()
    a, b = (
        MAKERS[name](3.0, joined)(x, sigma, **cond),
        MAKERS[name](3.0, split, joined=False)(x, sigma, **cond),
    )
    torch.testing.assert_close(a, b)
    assert joined.calls == [8] and split.calls == [4, 4]


def test_rescaling_gives_the_spread_back():
    x, sigma, cond = make_inputs()
    plain, strong = denoise(x, sigma, **cond), classifier_free(denoise, NULL, 9.0)(x, sigma, **cond)
    full, half = (
        classifier_free(denoise, NULL, 9.0, rescale=r)(x, sigma, **cond) for r in (1.0, 0.5)
    )
    torch.testing.assert_close(full.std((1, 2, 3)), plain.std((1, 2, 3)))
    torch.testing.assert_close(half, (full + strong) / 2)
    assert (strong.std((1, 2, 3)) > plain.std((1, 2, 3))).all()


def test_projection_leaves_no_push_along_the_estimate():
    x, sigma, cond = make_inputs()
    cond['class_cond'] = torch.tensor([1, 2, 3, 4])
    plain = denoise(x, sigma, **cond)
    push = adaptive_projected(denoise, NULL, 3.0)(x, sigma, **cond) - plain
    assert (push * plain).sum((1, 2, 3)).abs().max() < 1e-4 and push.abs().max() > 0.1
    whole = adaptive_projected(denoise, NULL, 3.0, eta=1.0)(x, sigma, **cond)
    torch.testing.assert_close(whole, classifier_free(denoise, NULL, 3.0)(x, sigma, **cond))
    bounded = adaptive_projected(denoise, NULL, 2.0, eta=1.0, norm=0.2)(x, sigma, **cond) - plain
    torch.testing.assert_close(bounded.square().mean((1, 2, 3)).sqrt(), torch.full((4,), 0.2))


def test_momentum_remembers_within_a_sample_and_forgets_with_the_next():
    x, sigma, cond = make_inputs()
    guided, once = (
        adaptive_projected(denoise, NULL, 2.0, eta=1.0, momentum=m) for m in (-0.5, 0.0)
    )
    first = guided(x, sigma, **cond)
    second = guided(x, sigma / 2, **cond)
    push = once(x, sigma / 2, **cond) - denoise(x, sigma / 2, **cond)
    torch.testing.assert_close(
        second, denoise(x, sigma / 2, **cond) + push / 2
    )  # the push is the same at each level here
    assert torch.equal(guided(x, sigma, **cond), first)
    assert torch.equal(
        guided(x[:2], sigma[:2] / 2, class_cond=cond['class_cond'][:2], shift=0.5),
        once(x[:2], sigma[:2] / 2, class_cond=cond['class_cond'][:2], shift=0.5),
    )


def test_autoguidance_extrapolates_from_the_worse_one():
    x, sigma, cond = make_inputs()
    plain = denoise(x, sigma, **cond)
    torch.testing.assert_close(
        MAKERS['autoguidance'](3.0)(x, sigma, **cond), plain * (0.9 + 3 * 0.1)
    )


def test_prompts_add_up():
    x, sigma, cond = make_inputs()
    ask = counted()
    prompts = [{'class_cond': 3}, {'class_cond': 5}]
    actual = composed(ask, NULL, prompts, [2.0, -1.0])(x, sigma, shift=0.5)
    none, three, five = (denoise(x, sigma, torch.full((4,), c), 0.5) for c in (0, 3, 5))
    torch.testing.assert_close(actual, none + 2 * (three - none) - (five - none))
    assert ask.calls == [12]
    torch.testing.assert_close(
        composed(denoise, NULL, prompts, [2.0, -1.0], joined=False)(x, sigma, **cond), actual
    )
    one = composed(ask, NULL, prompts[:1], [1.0])(x, sigma, **cond)
    assert torch.equal(one, three) and ask.calls == [12, 4]


def test_a_prompt_has_its_place():
    x, sigma, _ = make_inputs()
    weight = torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(3, 4)
    actual = composed(denoise, NULL, [{'class_cond': 3}, {'class_cond': 5}], [weight, 1 - weight])(
        x, sigma
    )
    three, five = (denoise(x, sigma, torch.full((4,), c)) for c in (3, 5))
    torch.testing.assert_close(actual[..., :2], three[..., :2])
    torch.testing.assert_close(actual[..., 2:], five[..., 2:])


def test_cfg_pp_takes_every_guidance_with_two_estimates():
    x, sigmas = torch.randn(2, 1, 3, 4) * 10, K.sampling.get_sigmas_karras(8, 0.1, 10.0)
    cond = {'class_cond': torch.tensor([1, 2])}
    denoisers = [
        *[MAKERS[name](0.6) for name in MAKERS],
        composed(denoise, NULL, [{'class_cond': 3}], [0.6]),
        static_thresholding(classifier_free(denoise, NULL, 0.6)),
    ]
    out = [
        K.sampling.sample_euler_cfg_pp(f, x, sigmas, extra_args=cond, disable=True)
        for f in denoisers
    ]
    assert all(o.isfinite().all() and o.std() > 0.01 for o in out) and not torch.allclose(
        out[0], out[2]
    )


def test_thresholds():
    def wide(x, sigma):
        return x * 3

    x, sigma = torch.randn(3, 1, 10, 10), torch.ones(3)
    assert torch.equal(static_thresholding(wide)(x, sigma), (3 * x).clamp(-1, 1))
    drawn_in = dynamic_thresholding(wide, 0.9)(x, sigma)
    s = (3 * x).flatten(1).abs().quantile(0.9, dim=1)
    assert (s > 1).all()
    torch.testing.assert_close(
        drawn_in, (3 * x).clamp(-s.view(-1, 1, 1, 1), s.view(-1, 1, 1, 1)) / s.view(-1, 1, 1, 1)
    )
    for threshold in (
        static_thresholding,
        dynamic_thresholding,
    ):  # a pair is that of what they wrap
        assert not hasattr(threshold(wide), 'pair') and hasattr(
            threshold(classifier_free(denoise, NULL, 2.0)), 'pair'
        )
    small = x / x.abs().amax() / 3
    for threshold in (static_thresholding, dynamic_thresholding):
        assert torch.equal(threshold(wide)(small, sigma), wide(small, sigma))


@pytest.mark.parametrize(
    'wrong, message',
    [
        (
            lambda: classifier_free(denoise, NULL, 2.0, rescale=2.0),
            r'rescale must be in \[0, 1\] .*; got 2.0',
        ),
        (lambda: adaptive_projected(denoise, NULL, 2.0, norm=0.0), 'norm must be > 0, .*; got 0'),
        (lambda: autoguidance(denoise, denoise, math.inf), 'finite'),
        (lambda: composed(denoise, NULL, [{'class_cond': 1}], []), 'a number or a map for each'),
        (lambda: composed(denoise, NULL, [{'text': 1}], [1.0]), 'must name the conditions of null'),
        (lambda: static_thresholding(denoise, 1.0, -1.0), 'must satisfy low < high'),
        (lambda: dynamic_thresholding(denoise, 1.5), r'quantile must be in \(0, 1\] .*; got 1.5'),
        (
            lambda: classifier_free(denoise, NULL, 2.0)(torch.ones(1, 1, 1, 1), torch.ones(1)),
            "with the condition 'class_cond'",
        ),
        (
            lambda: classifier_free(denoise, {'c': torch.ones(2)}, 2.0)(
                torch.ones(1, 1), torch.ones(1), c=torch.ones(1, 3)
            ),
            r"'c'.*\[3\].*got \[2\]",
        ),
    ],
)
def test_refusals(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
