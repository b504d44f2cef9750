"""Callbacks that write into x, in each sampler of the original: plain loops in its order of
slope, callback and step.
"""

import itertools
import math

import numpy as np
import pytest
import scipy.integrate
import torch

from k_diffusion import sampling

SIGMAS = [10.0, 6.0, 3.0, 1.5, 0.6, 0.2, 0.0]
LOW, HIGH = 0.2, 10.0


def D(x, s):
    """A denoiser whose answer is not linear in x."""
    return x * (0.25 / (0.25 + s**2)) + 0.3 * torch.sin(x / 5)


def edited(x):
    """Change x in the callback, as inpainting and rescaling do."""
    return x * 0.5 + 1


def draw(s, t):
    """Noise that is a function of the two levels alone."""
    s, t = float(s), float(t)
    return torch.sin(torch.arange(18, dtype=torch.float64).view(2, 1, 3, 3) * (1 + s) + t)


def split(s, t):
    up = min(t, math.sqrt(t**2 * (s**2 - t**2)) / s)
    return math.sqrt(t**2 - up**2), up


def d(x, s):
    return (x - D(x, s)) / s


def euler(x):
    for s, t in itertools.pairwise(SIGMAS):
        x = edited(x) + d(x, s) * (t - s)
    return x


def heun(x):
    for s, t in itertools.pairwise(SIGMAS):
        first, x = d(x, s), edited(x)
        second = d(x + first * (t - s), t) if t else first
        x = x + (first + second) / 2 * (t - s)
    return x


def dpm_2(x):
    for s, t in itertools.pairwise(SIGMAS):
        slope, x = d(x, s), edited(x)
        if t:
            m = math.sqrt(s * t)
            slope = d(x + slope * (m - s), m)
        x = x + slope * (t - s)
    return x


def lms(x):
    slopes = []
    for i, (s, t) in enumerate(itertools.pairwise(SIGMAS)):
        slopes = [d(x, s), *slopes][:4]
        nodes = [SIGMAS[i - j] for j in range(len(slopes))]
        x = edited(x)
        for j, slope in enumerate(slopes):
            basis = np.poly1d([1.0])
            for other in nodes[:j] + nodes[j + 1 :]:
                basis = basis * np.poly1d([1.0, -other]) / (nodes[j] - other)
            x = x + slope * scipy.integrate.quad(basis, s, t)[0]
    return x


def euler_ancestral(x):
    for s, t in itertools.pairwise(SIGMAS):
        denoised, x, (down, up) = D(x, s), edited(x), split(s, t)
        x = x + (x - denoised) / s * (down - s)
        x = x + draw(s, t) * up if t else x
    return x


def dpm_2_ancestral(x):
    for s, t in itertools.pairwise(SIGMAS):
        denoised, x, (down, up) = D(x, s), edited(x), split(s, t)
        slope = (x - denoised) / s
        if t:
            m = math.sqrt(s * down)
            slope = d(x + slope * (m - s), m)
        x = x + slope * (down - s)
        x = x + draw(s, t) * up if t else x
    return x


def dpmpp_2s_ancestral(x):
    for s, t in itertools.pairwise(SIGMAS):
        denoised, x, (down, up) = D(x, s), edited(x), split(s, t)
        if t:
            m = math.sqrt(s * down)
            denoised = D(m / s * x + (1 - m / s) * denoised, m)
        x = down / s * x + (1 - down / s) * denoised
        x = x + draw(s, t) * up if t else x
    return x


def dpmpp_sde(x):
    for s, t in itertools.pairwise(SIGMAS):
        denoised, x = D(x, s), edited(x)
        if not t:
            x = denoised + (x - denoised) / s * t
            continue
        m = math.sqrt(s * t)
        down, up = split(s, m)
        second = D(down / s * x + (1 - down / s) * denoised + draw(s, m) * up, m)
        down, up = split(s, t)
        x = down / s * x + (1 - down / s) * second + draw(s, t) * up
    return x


def dpmpp_2m(x):
    previous, h_last = None, None
    for s, t in itertools.pairwise(SIGMAS):
        denoised, x = D(x, s), edited(x)
        blend = denoised
        if previous is not None and t:
            r = h_last / math.log(s / t)
            blend = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * previous
        x = t / s * x + (1 - t / s) * blend
        previous, h_last = denoised, math.log(s / t) if t else None
    return x


def dpmpp_2m_sde(x):
    previous, h_last = None, None
    for s, t in itertools.pairwise(SIGMAS):
        denoised, x = D(x, s), edited(x)
        if not t:
            return denoised
        h = math.log(s / t)
        gain = 1 - math.exp(-2 * h)
        x = t / s * math.exp(-h) * x + gain * denoised
        if previous is not None:
            x = x + gain / 2 * (denoised - previous) * h / h_last
        x = x + draw(s, t) * t * math.sqrt(1 - math.exp(-2 * h))
        previous, h_last = denoised, h
    return x


def dpmpp_3m_sde(x):
    answers, lengths = [], []
    for s, t in itertools.pairwise(SIGMAS):
        denoised, x = D(x, s), edited(x)
        if not t:
            return denoised
        h = math.log(s / t)
        H = 2 * h
        x = math.exp(-H) * x + (1 - math.exp(-H)) * denoised
        phi2 = (math.exp(-H) - 1) / H + 1
        if len(answers) > 1:
            r0, r1 = lengths[0] / h, lengths[1] / h
            near, far = (denoised - answers[0]) / r0, (answers[0] - answers[1]) / r1
            first = near + (near - far) * r0 / (r0 + r1)
            x = x + phi2 * first - (phi2 / H - 0.5) * (near - far) / (r0 + r1)
        elif answers:
            x = x + phi2 * (denoised - answers[0]) * h / lengths[0]
        x = x + draw(s, t) * t * math.sqrt(1 - math.exp(-2 * h))
        answers, lengths = [denoised, *answers][:2], [h, *lengths][:2]
    return x


def step_1(x, s, t, eps):
    return x + (t - s) * eps


def step_2(x, s, t, eps, r=0.5):
    h, m = math.log(s / t), s * (t / s) ** r
    middle = d(step_1(x, s, m, eps), m)
    return step_1(x, s, t, eps) - t / (2 * r) * math.expm1(h) * (middle - eps), middle


def step_3(x, s, t, eps, near):
    h, r = math.log(s / t), 2 / 3
    m = s * (t / s) ** r
    inner = step_1(x, s, m, eps) - m * 2 * (math.expm1(r * h) / (r * h) - 1) * (near - eps)
    return step_1(x, s, t, eps) - t / r * (math.expm1(h) / h - 1) * (d(inner, m) - eps)


def dpm_fast(x):
    """Seven calls: orders 3, 3 and 1, in equal steps of log sigma."""
    s = HIGH
    for order in (3, 3, 1):
        t = s * (LOW / HIGH) ** (1 / 3)
        eps, x = d(x, s), edited(x)
        x = (
            step_1(x, s, t, eps)
            if order == 1
            else step_3(x, s, t, eps, step_2(x, s, t, eps, 1 / 3)[1])
        )
        s = t
    return x


def dpm_adaptive(x):
    """Orders 2 and 3; the callback comes after the step, and an edit is the start of the next
    one.
    """
    t, end, h, previous = -math.log(HIGH), -math.log(LOW), 0.05, x
    while end - t > 1e-5:
        following = min(end, t + h)
        s, low_level = math.exp(-t), math.exp(-following)
        eps = d(x, s)
        low, near = step_2(x, s, low_level, eps, 1 / 3)
        high = step_3(x, s, low_level, eps, near)
        delta = torch.clamp(0.05 * torch.maximum(low.abs(), previous.abs()), min=0.0078)
        inverse = 1 / (1e-8 + ((low - high) / delta).norm().item() / x.numel() ** 0.5)
        factor = 1 + math.atan(inverse ** (1 / 3) - 1)
        h *= factor
        if factor >= 0.81:
            x, previous, t = high, low, following
        x = edited(x)
    return x


STOCHASTIC = {
    'euler_ancestral',
    'dpm_2_ancestral',
    'dpmpp_2s_ancestral',
    'dpmpp_sde',
    'dpmpp_2m_sde',
    'dpmpp_3m_sde',
}
ORIGINALS = [
    euler,
    heun,
    dpm_2,
    lms,
    euler_ancestral,
    dpm_2_ancestral,
    dpmpp_2s_ancestral,
    dpmpp_sde,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m_sde,
    dpm_fast,
    dpm_adaptive,
]


@pytest.mark.parametrize('original', ORIGINALS)
@pytest.mark.filterwarnings('ignore:sample_dpm_2_ancestral. the step')
def test_an_edit_of_x_in_the_callback_is_that_of_the_original(original):
    name, x = original.__name__, torch.randn(2, 1, 3, 3, dtype=torch.float64) * 10
    where = {'dpm_fast': (LOW, HIGH, 7), 'dpm_adaptive': (LOW, HIGH)}.get(
        name, (torch.tensor(SIGMAS, dtype=torch.float64),)
    )
    options = {'noise_sampler': draw} if name in STOCHASTIC else {}
    model = lambda x, sigma: D(x, sigma.view(-1, 1, 1, 1))

    def callback(info):
        info['x'].copy_(edited(info['x']))

    actual = sampling.SAMPLERS[name].function(
        model, x.clone(), *where, callback=callback, disable=True, **options
    )
    torch.testing.assert_close(actual, original(x), atol=1e-8, rtol=1e-8)
