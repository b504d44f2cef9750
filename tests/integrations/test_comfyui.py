"""The nodes for ComfyUI, against `K.sample` of the same denoiser; the host is a stand-in
(comfyui_stand_in).
"""

from __future__ import annotations

import inspect
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfyui_stand_in as host
import pytest
import torch
from sampler_cases import COMFYUI
from torch import Tensor

import k_diffusion as K
from k_diffusion.core.random import derive_seed
from k_diffusion.generation import make_seeds
from k_diffusion.integrations.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from k_diffusion.sampling.menus import AS_COMFYUI, COMFYUI_TIME, read_options

CENTRE = torch.linspace(-1.0, 1.0, 16).reshape(1, 1, 4, 4)
SCALE = 2.5
ScheduleNode, RecommendedNode, CalibrateNode, CalibratedNode = (
    NODE_CLASS_MAPPINGS[f'KDiffusion{name}']
    for name in ('Schedule', 'Recommended', 'Calibrate', 'Calibrated')
)
ENTRIES = {entry.name: entry for entry in K.sampling.catalogue()}


def denoise(x: Tensor, sigma: Tensor, positive: bool) -> Tensor:
    """The posterior mean of two Gaussians at +-CENTRE, the first one likelier under the positive
    condition.
    """
    level = sigma.reshape(-1, 1, 1, 1)
    total = 0.1 + level**2
    side = torch.tanh(
        (x * CENTRE).sum((1, 2, 3), keepdim=True) / total + (0.5 if positive else 0.0)
    )
    return (0.1 * x + level**2 * side * CENTRE) / total


class Guided:
    """The same guidance as the stand-in's, as a denoiser of k-diffusion with its pair."""

    sigma_min, sigma_max = 0.05, 10.0

    def pair(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        positive, negative = (denoise(x, sigma, side) for side in (True, False))
        return negative + SCALE * (positive - negative), negative

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.pair(x, sigma)[0]


class Discrete(host.EPS):
    sigma_min, sigma_max = torch.tensor(0.05), torch.tensor(10.0)
    sigmas = torch.linspace(math.log(0.05), math.log(10.0), 100).exp()

    def percent_to_sigma(self, share: float) -> float:
        return 10.0 * 0.005**share


class Flow(host.CONST):
    sigma_min, sigma_max = torch.tensor(0.01), torch.tensor(1.0)
    sigmas = torch.linspace(0.01, 1.0, 100)

    def percent_to_sigma(self, share: float) -> float:
        return 1.0 - share


#: The factor of the noise where the whole range is sampled: ComfyUI starts with the variance of the
#: noise plus 1.
WHOLE = math.sqrt(1 + 10.0**2)


@pytest.fixture(autouse=True)
def comfyui(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    host.install(monkeypatch, tmp_path)
    return tmp_path


def guider(flow: bool = False, scale: float = SCALE) -> host.Guider:
    return host.Guider(host.Model(denoise, Flow() if flow else Discrete()), scale)


def start(n: int = 2) -> Tensor:
    return torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(3))


def give(name: str, **widgets: Any) -> Any:
    return NODE_CLASS_MAPPINGS[f'KDiffusion_{name}']().give(**widgets)[0]


@pytest.mark.parametrize('flow', [False, True])
@pytest.mark.parametrize(
    'name', [name for name, entry in ENTRIES.items() if 'sigmas' in entry.takes]
)
def test_a_node_gives_the_pictures_of_k_sample(name: str, flow: bool) -> None:
    sigmas = K.schedules.get_sigmas_karras(6, 0.05, 50.0 if flow else 10.0)
    levels = (sigmas / (1 + sigmas) if flow else sigmas).float()
    noise, latent = start(), torch.zeros(2, 1, 4, 4)
    ours = guider(flow).sample(noise, latent, give(name), levels, seed=7)
    options = {
        **AS_COMFYUI.get(name, {}),
        **({'down': 'flow'} if flow and 'down' in ENTRIES[name].options else {}),
    }
    if 'interval' in ENTRIES[name].options:  # shares 0.2 and 0.8 of the time of Flow and Discrete
        ends = (4.0, 0.25) if flow else (10.0 * 0.005**0.2, 10.0 * 0.005**0.8)
        options['tau'] = K.sampling.tau_between(sigmas, *ends)
    x = noise * (sigmas[0] if flow else WHOLE)
    expected = K.sample(Guided(), x, None, name, sigmas, seeds=7, options=options)
    torch.testing.assert_close(
        ours, expected, atol=1e-4 if flow else 1e-5, rtol=1e-4 if flow else 1e-5
    )


@pytest.mark.parametrize('name', ['dpm_fast', 'dpm_adaptive'])
def test_samplers_between_two_levels_end_at_the_lower_one(name: str) -> None:
    """As ComfyUI has it: there is no last step to 0."""
    sigmas = torch.tensor([9.0, 3.0, 1.0, 0.0])
    ours = guider().sample(start(), torch.zeros(2, 1, 4, 4), give(name), sigmas)
    options = {'n': 3} if name == 'dpm_fast' else {'per_item': True}
    expected = ENTRIES[name].function(
        Guided(), 9.0 * start(), sigma_min=1.0, sigma_max=9.0, **options
    )
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize('name', [name for name, time in COMFYUI_TIME.items() if time == 'sigma'])
def test_in_the_time_of_the_model_a_flow_is_sampled_on_its_own_levels(name: str) -> None:
    """As ComfyUI runs it: x_t and t in place of x and sigma."""
    times = torch.tensor([0.9, 0.6, 0.3, 0.1, 0.0])

    class OnTimes(Guided):
        def pair(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
            t = sigma.reshape(-1, 1, 1, 1)
            return super().pair(x / (1 - t), sigma / (1 - sigma))

    node = give(name, time='model')
    ours = guider(True).sample(start(), CENTRE.expand(2, 1, 4, 4), node, times, seed=2)
    entry, x = ENTRIES[name], 0.9 * start() + 0.1 * CENTRE
    ends = {'sigmas': times, 'sigma_max': 0.9, 'sigma_min': 0.1, 'n': 4}
    options = {**AS_COMFYUI.get(name, {}), **({'per_item': True} if entry.couples_batch else {})}
    seeds = [derive_seed(seed, 'steps') for seed in make_seeds(2, 2)]
    arguments = {key: ends[key] for key in entry.takes} | options
    expected = entry.function(OnTimes(), x, **arguments, **({'seed': seeds} if entry.noise else {}))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def gaussian(x_t: Tensor, t: Tensor) -> Tensor:
    """The clean mean given x_t = (1 - t) clean + t noise, for clean data of standard deviation
    1/2.
    """
    time = t.reshape(-1, 1, 1, 1)
    return 0.25 * (1 - time) * x_t / (0.25 * (1 - time) ** 2 + time**2)


class GaussianFlow(host.Guider):
    def __call__(self, x: Tensor, sigma: Tensor, model_options: Any, seed: Any) -> Tensor:
        return gaussian(x, sigma)


def test_a_flow_that_starts_at_time_1_is_that_of_the_flow_denoiser() -> None:
    flow = K.external.FlowDenoiser(lambda x_t, t: (x_t - gaussian(x_t, t)) / t.reshape(-1, 1, 1, 1))
    levels = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0])
    sigmas = [1e4, 4.0, 1.0, 0.25, 0.0]
    # a Brownian path moves by the root of what float32 times leave of a level
    for name, tolerance in {
        'euler': 1e-5,
        'heun': 1e-5,
        'dpmpp_2m': 1e-5,
        'dpmpp_2m_sde': 1e-3,
    }.items():
        node_guider = GaussianFlow(host.Model(None, Flow()), 1.0)
        ours = node_guider.sample(start(), torch.zeros(2, 1, 4, 4), give(name), levels, seed=5)
        expected = K.sample(flow, start() * 1e4, None, name, sigmas, seeds=5)
        torch.testing.assert_close(ours, expected, atol=tolerance, rtol=1e-5)


def test_image_to_image_starts_from_the_picture_and_its_noise() -> None:
    latent = CENTRE.expand(2, 1, 4, 4)
    for flow, level in ((False, 0.6), (True, 0.375)):  # sigma 0.6 both
        sigmas = torch.tensor([level, level / 2, 0.0])
        ours = guider(flow).sample(start(), latent, give('euler'), sigmas)
        walked = [0.6, 0.3 if not flow else 0.1875 / 0.8125, 0.0]
        expected = K.sample(Guided(), latent + 0.6 * start(), None, 'euler', walked, seeds=0)
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_a_part_of_a_schedule_can_be_gone_on_with() -> None:
    sigmas = torch.tensor([0.9, 0.7, 0.5, 0.3, 0.0])
    whole = guider(True).sample(start(), torch.zeros(2, 1, 4, 4), give('euler'), sigmas)
    half = guider(True).sample(start(), torch.zeros(2, 1, 4, 4), give('euler'), sigmas[:3])
    other = guider(True).sample(torch.zeros_like(half), half, give('euler'), sigmas[2:])
    torch.testing.assert_close(other, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('scale', [1.0, SCALE])
def test_cfg_pp_asks_for_the_unconditional_estimate_at_every_scale(scale: float) -> None:
    sigmas = torch.tensor([2.0, 1.0, 0.0])
    ours = guider(scale=scale).sample(
        start(), torch.zeros(2, 1, 4, 4), give('euler_cfg_pp'), sigmas
    )
    x = 2.0 * start()
    for sigma, below in (
        (2.0, 1.0),
        (1.0, 0.0),
    ):  # x' = D_guided + below (x - D_unconditional) / sigma
        level = torch.full((2,), sigma)
        positive, negative = denoise(x, level, True), denoise(x, level, False)
        x = negative + scale * (positive - negative) + below * (x - negative) / sigma
    torch.testing.assert_close(ours, x, atol=1e-5, rtol=1e-5)


def test_a_picture_does_not_depend_on_its_batch() -> None:
    sigmas = K.schedules.get_sigmas_karras(5, 0.05, 10.0).float()
    together = guider().sample(
        start(3), torch.zeros(3, 1, 4, 4), give('dpmpp_2m_sde'), sigmas, seed=4
    )
    alone = guider().sample(
        start(3)[:1], torch.zeros(1, 1, 4, 4), give('dpmpp_2m_sde'), sigmas, seed=4
    )
    torch.testing.assert_close(together[:1], alone)


@pytest.mark.parametrize('flow', [False, True])
@pytest.mark.parametrize('name', COMFYUI)
def test_every_sampler_of_comfyui_repaints_under_a_mask(name: str, flow: bool) -> None:
    """Image to image, and inpainting: outside of the mask the picture is what it was."""
    name = K.sampling.find_sampler(name).name
    latent, mask = CENTRE.expand(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
    mask[..., 2:] = 1
    levels = K.schedules.get_sigmas_karras(6, 0.05, 3.0).double()
    levels = (levels / (1 + levels) if flow else levels).float()
    ours = guider(flow).sample(start(), latent, give(name), levels, seed=2, denoise_mask=mask)
    assert ours.isfinite().all() and (ours[..., 2:] - latent[..., 2:]).abs().max() > 1e-3
    error = (ours - latent)[..., :2].abs().max()
    # two samplers end at the least level above 0, UniPC at a small one, as in ComfyUI
    ends = (
        levels[-2] if 'sigma_min' in ENTRIES[name].takes else AS_COMFYUI.get(name, {}).get('end', 0)
    )
    assert error < 1e-5 + 4 * float(ends)


def test_the_hosts_noise_is_taken_where_it_is_asked_for() -> None:
    sigmas = torch.tensor([4.0, 1.0, 0.0])
    ours = guider().sample(
        start(), torch.zeros(2, 1, 4, 4), give('euler_ancestral', noise='ComfyUI'), sigmas, seed=11
    )
    expected = K.sampling.sample_euler_ancestral(
        Guided(), 4.0 * start(), sigmas, noise_sampler=noise_of_the_host(11)
    )
    torch.testing.assert_close(ours, expected)


def test_half_of_the_draws_of_comfyui_have_no_weight_in_exponential_heun() -> None:
    sigmas = torch.tensor([4.0, 1.0, 0.3, 0.0])
    node = give('exp_heun_2_x0_sde', noise='ComfyUI')
    ours = guider().sample(start(), torch.zeros(2, 1, 4, 4), node, sigmas, seed=11)
    draw = noise_of_the_host(11)
    draws = [draw(None, None) for _ in range(4)][::2]
    expected = K.sampling.sample_exp_heun_2_x0_sde(
        Guided(), 4.0 * start(), sigmas, noise_sampler=lambda *ends: draws.pop(0)
    )
    torch.testing.assert_close(ours, expected)
    assert not draws


def test_the_noise_of_a_model_may_have_another_scale() -> None:
    node_guider = guider()
    node_guider.model_patcher.model_sampling.noise_scale = 3.0
    sigmas = torch.tensor([4.0, 1.0, 0.3, 0.0])
    node = give('euler_ancestral', s_noise=0.5)
    ours = node_guider.sample(start(), torch.zeros(2, 1, 4, 4), node, sigmas, seed=5)
    x, options = 4.0 * start(), {'s_noise': 1.5}
    expected = K.sample(Guided(), x, None, 'euler_ancestral', sigmas, seeds=5, options=options)
    torch.testing.assert_close(ours, expected)


def test_cfg_pp_without_a_negative_condition_is_the_sampler_without_guidance() -> None:
    sigmas = torch.tensor([4.0, 1.0, 0.3, 0.0])
    alone = host.Guider(host.Model(denoise, Discrete()), SCALE, negative=False)
    pictures = [
        alone.sample(start(), torch.zeros(2, 1, 4, 4), give(name), sigmas)
        for name in ('euler_cfg_pp', 'euler')
    ]
    torch.testing.assert_close(*pictures)


def noise_of_the_host(seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return lambda sigma, sigma_next: torch.randn(2, 1, 4, 4, generator=generator)


def test_previews_see_x_in_the_hosts_coordinates_and_an_interruption_passes_through() -> None:
    previews = []

    class Interrupted(Exception):
        pass

    def preview(i: int, denoised: Tensor, x: Tensor, total: int) -> None:
        previews.append((i, x.clone(), total))
        if i == 1:
            raise Interrupted

    with pytest.raises(Interrupted):
        guider(True).sample(
            start(),
            torch.zeros(2, 1, 4, 4),
            give('euler'),
            torch.tensor([0.8, 0.5, 0.2, 0.0]),
            preview,
        )
    assert [(i, total) for i, _, total in previews] == [(0, 3), (1, 3)]
    torch.testing.assert_close(previews[0][1], 0.8 * start())


@pytest.mark.parametrize('name', ENTRIES)
def test_the_widgets_begin_with_the_defaults_of_the_sampler_or_of_comfyui(name: str) -> None:
    node = NODE_CLASS_MAPPINGS[f'KDiffusion_{name}']
    widgets = node.INPUT_TYPES()['required']
    values = {
        key: settings['default']
        for key, (_, settings) in widgets.items()
        if key not in ('noise', 'time')
    }
    assert read_options(ENTRIES[name], values) == AS_COMFYUI.get(name, {})
    assert NODE_DISPLAY_NAME_MAPPINGS[f'KDiffusion_{name}'] == f'k-diffusion {name}'
    assert node.CATEGORY.startswith('k-diffusion/') and node.RETURN_TYPES == ('SAMPLER',)
    assert set(inspect.signature(node.give).parameters) >= {'noise', 'values'}


def test_what_is_typed_into_a_widget_reaches_the_sampler() -> None:
    sigmas = torch.tensor([4.0, 1.0, 0.5, 0.0])
    ours = guider().sample(
        start(),
        torch.zeros(2, 1, 4, 4),
        give('restart', intervals='[(0.5, 2.)]', times=3, s_noise=0.0),
        sigmas,
    )
    options = {'intervals': [(0.5, 2.0)], 'times': 3, 's_noise': 0.0}
    torch.testing.assert_close(
        ours, K.sample(Guided(), 4.0 * start(), None, 'restart', sigmas, seeds=0, options=options)
    )
    with pytest.raises(ValueError, match='intervals must be a number, a tuple or a list'):
        give('restart', intervals='__import__("os")')


def test_schedules_have_the_models_own_ends() -> None:
    model = guider().model_patcher
    (levels,) = ScheduleNode().give(model, 'karras', 5, 1.0)
    torch.testing.assert_close(
        levels, K.schedules.get_sigmas_karras(5, 0.05, 10.0), rtol=1e-6, atol=1e-6
    )
    (levels,) = ScheduleNode().give(model, 'simple', 4, 1.0)
    torch.testing.assert_close(
        levels, torch.cat([Discrete.sigmas[[99, 74, 49, 24]], torch.zeros(1)])
    )
    (last,) = ScheduleNode().give(model, 'simple', 2, 0.5)
    torch.testing.assert_close(last, levels[2:])
    assert len(ScheduleNode().give(model, 'karras', 5, 0.0)[0]) == 0
    (times,) = ScheduleNode().give(guider(flow=True).model_patcher, 'karras', 5, 1.0)
    torch.testing.assert_close(times, K.schedules.get_sigmas_karras(5, 0.01, 1.0))
    names, _ = ScheduleNode.INPUT_TYPES()['required']['schedule']
    for name in names:
        for flow in (False, True):
            (levels,) = ScheduleNode().give(guider(flow).model_patcher, name, 8, 1.0)
            assert (
                levels[-1] == 0
                and (levels[:-1] > levels[1:]).all()
                and (not flow or levels[0] <= 1)
            )


def test_the_recommended_node_gives_what_k_sample_takes() -> None:
    sampler, levels = RecommendedNode().give(guider().model_patcher, 8, True)
    ours = guider().sample(start(), torch.zeros(2, 1, 4, 4), sampler, levels)
    torch.testing.assert_close(
        ours, K.sample(Guided(), start() * WHOLE, 8, seeds=0), atol=1e-5, rtol=1e-5
    )


def test_a_fitted_sampler_is_kept_and_found_again(comfyui: Path) -> None:
    latent = {'samples': torch.zeros(1, 1, 4, 4)}
    node_guider = guider()
    sampler, levels = CalibrateNode().give(
        node_guider, latent_image=latent, calls=3, noises=8, seed=0, batch_size=16, name='two peaks'
    )
    assert host.ProgressBar.reports and (comfyui / 'k-diffusion' / 'two peaks.json').exists()
    assert CalibratedNode.INPUT_TYPES()['required']['name'] == (['two peaks'], {})
    again, same = CalibratedNode().give(node_guider.model_patcher, 'two peaks')
    counted = guider()
    ours = counted.sample(start(), torch.zeros(2, 1, 4, 4), sampler, levels)
    assert counted.call_count == 3
    torch.testing.assert_close(counted.sample(start(), torch.zeros(2, 1, 4, 4), again, same), ours)
    converged = K.sample(Guided(), start() * WHOLE, 200, 'heun', seeds=0)
    euler = K.sample(Guided(), start() * WHOLE, 3, 'euler', seeds=0)
    assert (ours - converged).norm() < 0.5 * (euler - converged).norm()
    # ComfyUI runs the node again only where this differs; links are None
    fitted = CalibratedNode.IS_CHANGED(model=None, name='two peaks')
    assert fitted == CalibratedNode.IS_CHANGED(model=None, name='two peaks')
    (comfyui / 'k-diffusion' / 'two peaks.json').write_text(fitted.replace('1', '2'))
    assert fitted != CalibratedNode.IS_CHANGED(model=None, name='two peaks')
    with pytest.raises(ValueError, match='name must be the name of a file'):
        CalibrateNode().give(
            node_guider,
            latent_image=latent,
            calls=3,
            noises=8,
            seed=0,
            batch_size=16,
            name='../elsewhere',
        )


def test_the_package_is_imported_without_its_host() -> None:
    assert SimpleNamespace(
        **NODE_CLASS_MAPPINGS
    )  # names that are attributes, as workflows store them
    assert len(NODE_CLASS_MAPPINGS) == len(ENTRIES) + 4 == len(NODE_DISPLAY_NAME_MAPPINGS)


def test_the_example_of_the_page_runs(comfyui: Path) -> None:
    page = (Path(__file__).parents[2] / 'docs' / 'comfyui.md').read_text()
    node_guider = guider()
    names = {
        'guider': node_guider,
        'model': node_guider.model_patcher,
        'noise': start(),
        'latent': torch.zeros(2, 1, 4, 4),
    }
    exec('\n'.join(re.findall(r'```python\n(.*?)```', page, re.S)), names)
    expected = K.sample(
        Guided(), start() * WHOLE, 20, 'dpmpp_2m_sde', 'karras', seeds=7, options={'eta': 0.5}
    )
    torch.testing.assert_close(names['latents'], expected, atol=1e-4, rtol=1e-4)
    assert names['quick'].isfinite().all()
