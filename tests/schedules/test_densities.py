"""Training noise levels: the original's draws under a seed, quantiles that are the inverse of
the distribution, strata.
"""

import math
from types import SimpleNamespace

import pytest
import torch

from k_diffusion import schedules
from k_diffusion.schedules import (
    DENSITIES,
    CosineInterpolated,
    LogLogistic,
    LogNormal,
    LogUniform,
    SplitLogNormal,
    VDiffusion,
)

#: the parameters of golden/utilities (index.json), and the same as densities
GOLDEN = {
    'log_normal': ((-1.2, 1.2), LogNormal(mean=-1.2, std=1.2)),
    'log_logistic': (
        (-1, 0.5, 0.01, 80),
        LogLogistic(loc=-1, scale=0.5, min_value=0.01, max_value=80),
    ),
    'log_uniform': ((0.01, 80), LogUniform(min_value=0.01, max_value=80)),
    'v_diffusion': ((0.5, 0.01, 80), VDiffusion(sigma_data=0.5, min_value=0.01, max_value=80)),
    'cosine_interpolated': (
        (64, 32, 64, 0.5, 0.01, 80),
        CosineInterpolated(
            image_d=64,
            noise_d_low=32,
            noise_d_high=64,
            sigma_data=0.5,
            min_value=0.01,
            max_value=80,
        ),
    ),
    'split_log_normal': ((-1, 0.5, 1.5), SplitLogNormal(loc=-1, scale_1=0.5, std_2=1.5)),
}
MODEL = SimpleNamespace(sigma_data=0.5, sigma_min=0.02, sigma_max=160.0, input_size=(32, 48))
names = pytest.mark.parametrize('name', GOLDEN)


@names
@pytest.mark.parametrize('stratified', [False, True])
def test_the_originals_draws(golden, name, stratified):
    parameters, density = GOLDEN[name]
    expected = golden('utilities')[f'rand_{name}{".stratified" if stratified else ""}.seed3']
    for draw in (
        lambda: getattr(schedules, f'rand_{name}')([16], *parameters),
        lambda: density([16]),
    ):
        torch.manual_seed(3)
        with schedules.enable_stratified(disable=not stratified):
            torch.testing.assert_close(draw(), expected, rtol=3e-6, atol=0)


@names
def test_quantiles_invert_the_distribution(name):
    density = GOLDEN[name][1]
    u = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    levels = density.quantile(u)
    assert levels.dtype == torch.float64 and levels.diff().min() > 0
    samples = density([50000]).double()
    shares = (samples[:, None] < levels).double().mean(0)
    assert (shares - u).abs().max() < 0.01  # 4.5 standard deviations of a share of 50,000
    torch.testing.assert_close(density.quantile(u.float()), levels.float(), rtol=1e-4, atol=0)
    assert density.quantile(u.view(5, 5)).shape == (5, 5)


def test_closed_forms():
    u = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    torch.testing.assert_close(
        LogNormal(loc=-1, scale=2).quantile(u).log(),
        -1 + 2 * torch.special.ndtri(u),
        rtol=0,
        atol=1e-6,
    )
    torch.testing.assert_close(LogLogistic(loc=-1, scale=2).quantile(u).log(), -1 + 2 * u.logit())
    torch.testing.assert_close(
        LogUniform(min_value=0.1, max_value=10).quantile(u).log10(), 2 * u - 1
    )
    whole = VDiffusion(sigma_data=0.5, min_value=0, max_value=math.inf)
    torch.testing.assert_close(whole.quantile(u), 0.5 * (u * math.pi / 2).tan())
    split = SplitLogNormal(mean=-1, std_1=1, std_2=3).quantile(u).log()
    torch.testing.assert_close(split[:1], torch.tensor([-1.0], dtype=torch.float64))
    torch.testing.assert_close(
        split[2:], -1 + 3 * torch.special.ndtri(torch.tensor([5 / 6], dtype=torch.float64))
    )


@pytest.mark.parametrize(
    'side, expected', [(32, [0.209, 0.499, 1.197]), (256, [0.342, 1.399, 5.66])]
)
def test_the_cosine_shifts_with_the_size_of_the_image(side, expected):
    model = SimpleNamespace(sigma_data=0.5, sigma_min=0.01, sigma_max=80, input_size=(side, side))
    quartiles = CosineInterpolated().fill_from(model).quantile(torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(
        quartiles, torch.tensor(expected), rtol=0.03, atol=0
    )  # measured on draws


def test_a_model_fills_what_is_left_open():
    filled = {
        name: DENSITIES[name]().fill_from(MODEL)
        for name in ('loglogistic', 'loguniform', 'v-diffusion', 'cosine-interpolated')
    }
    assert filled['loglogistic'].parameters == (math.log(0.5), 0.5, 0, math.inf)
    assert filled['loguniform'].parameters == (0.02, 160)
    assert filled['v-diffusion'].parameters == (0.5, 1e-3, 1e3)
    assert filled['cosine-interpolated'].parameters == (48, 32, 48, 0.5, 1e-3, 1e3)
    assert LogUniform(min_value=0.5).fill_from(MODEL).parameters == (0.5, 160)
    assert DENSITIES['cosine'](type='cosine') == VDiffusion(type='cosine')


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda: LogNormal(mean=-1), 'std must be given exactly once, as std or as scale; got 0'),
        (
            lambda: LogNormal(mean=-1, loc=-1, std=1),
            'mean must be given exactly once, as mean or as loc; got 2',
        ),
        (lambda: LogNormal(mean=-1, std=0), 'std must be > 0; got 0.0'),
        (lambda: SplitLogNormal(mean=-1, std_1=1, std_2=-1), 'std_2 must be > 0; got -1.0'),
        (lambda: VDiffusion(min_value=2, max_value=1), '0 <= min_value < max_value; got 2 and 1'),
        (lambda: LogUniform(min_value=0.0), 'min_value must be > 0; got 0.0'),
        (lambda: LogUniform()([4]), r'min_value must be a number; got None, .* filled\(model\)'),
        (
            lambda: DENSITIES['log-normal'],
            "unknown sigma density 'log-normal', did you mean 'lognormal'",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_strata_of_all_groups_cover_the_unit_interval_once():
    parts = [schedules.stratified_uniform([2, 8], group, 3) for group in range(3)]
    u = torch.stack(parts, dim=-1).flatten(1)
    assert torch.equal((u * 24).floor(), torch.arange(24.0).expand(2, 24))
    assert not torch.equal(*u)


def test_stratification_is_switched_by_settings_and_restored():
    def ordered():
        u = schedules.stratified_with_settings([64])
        return bool((u.diff() > 0).all())

    assert not ordered()
    with schedules.enable_stratified():
        assert ordered()
        with schedules.enable_stratified(disable=True):
            assert not ordered()
        assert ordered()
    assert not ordered()


def test_an_accelerator_names_the_group():
    accelerator = SimpleNamespace(
        process_index=1, num_processes=2, step=5, gradient_state=SimpleNamespace(num_steps=3)
    )
    with schedules.enable_stratified_accelerate(accelerator):
        u = schedules.stratified_with_settings([4], dtype=torch.float64)
    assert (u * 24).floor().tolist() == [5, 11, 17, 23]


@pytest.mark.parametrize(
    'group, groups, message',
    [(0, 0, 'groups must be >= 1; got 0'), (2, 2, 'group must be from 0 to 1; got 2')],
)
def test_wrong_groups_are_refused(group, groups, message):
    with pytest.raises(ValueError, match=message):
        schedules.stratified_uniform([4], group, groups)
