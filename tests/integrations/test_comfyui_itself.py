"""The nodes inside ComfyUI, against its own samplers and against the stand-in of the other tests.

These tests need ComfyUI and what it imports. Set COMFYUI to its folder, or make `comfy` importable.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfyui_stand_in as stand_in
import pytest
import torch
from sampler_cases import COMFYUI
from torch import Tensor, nn

import k_diffusion as K
from k_diffusion.integrations import comfyui as pack

pytestmark = pytest.mark.slow

KINDS = ('EPS', 'V_PREDICTION', 'FLOW')
ENTRIES = {entry.name: entry for entry in K.sampling.catalogue()}
#: How far names differ with a flow model, in shares of the picture: ComfyUI puts the middle of
#: dpm_2_ancestral in flow time, multiplies the result of its UniPC by 1.001, and extrapolates
#: cfgpp_ud10_ab in t.
DIFFERENT = {'dpm_2_ancestral': 0.5, 'uni_pc': 2e-3, 'uni_pc_bh2': 2e-3, 'cfgpp_ud10_ab': 0.3}


@pytest.fixture(scope='module')
def comfy() -> Iterator[Any]:
    """The modules of ComfyUI."""
    folder, paths = os.environ.get('COMFYUI'), list(sys.path)
    sys.path[:0] = [folder] if folder else []
    try:
        import comfy.cli_args

        comfy.cli_args.args.cpu = not torch.cuda.is_available()
        import comfy.model_base
        import comfy.model_patcher
        import comfy.samplers
        import comfy.supported_models_base

        yield comfy
    except ImportError as reason:
        pytest.skip(f'ComfyUI is not here, set COMFYUI to its folder: {reason}')
    finally:
        sys.path[:] = paths


class Network(nn.Module):
    """A network whose output depends on x, the time and the condition."""

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.dtype = torch.float32
        generator = torch.Generator().manual_seed(1)
        self.mix = nn.Parameter(torch.randn(4, 4, generator=generator) / 3, requires_grad=False)

    def forward(self, x: Tensor, timesteps: Tensor, context: Any = None, **_: Any) -> Tensor:
        shift = (
            torch.sin(timesteps / 200).reshape(-1, 1, 1, 1)
            + context.mean((1, 2))[:, None, None, None]
        )
        return torch.tanh(torch.einsum('oc,bchw->bohw', self.mix, x) + shift) + 0.3 * x


def patcher(comfy: Any, kind: str) -> Any:
    config = comfy.supported_models_base.BASE({})
    config.sampling_settings = {'shift': 3.0} if kind == 'FLOW' else {}
    config.memory_usage_factor = 1.0
    types, cpu = comfy.model_base.ModelType, torch.device('cpu')
    model = comfy.model_base.BaseModel(config, types[kind], unet_model=Network)
    return comfy.model_patcher.ModelPatcher(model, cpu, cpu)


def guider(comfy: Any, kind: str, scale: float = 2.0) -> Any:
    result = comfy.samplers.CFGGuider(patcher(comfy, kind))
    positive, negative = ([[torch.full((1, 3, 8), value), {}]] for value in (0.5, -0.5))
    result.set_conds(positive, negative)
    result.set_cfg(scale)
    return result


def draw(n: int, seed: int) -> Tensor:
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def run(node_guider: Any, sampler: Any, sigmas: Tensor, n: int = 2, **others: Any) -> Tensor:
    settings = {'seed': 7, 'disable_pbar': True, **others}
    result: Tensor = node_guider.sample(
        draw(3, 3)[:n], draw(3, 4)[:n], sampler, sigmas.clone(), **settings
    )
    return result


def levels(kind: str, first: float | None = None) -> Tensor:
    first = first or (0.9 if kind == 'FLOW' else 10.0)
    return K.schedules.get_sigmas_karras(6, 0.03, first)


def node(name: str, **widgets: Any) -> Any:
    """The SAMPLER of a node with the first values of its widgets, and some others."""
    kind = pack.NODE_CLASS_MAPPINGS[f'KDiffusion_{ENTRIES[name].name}']
    values = {key: entry[1]['default'] for key, entry in kind.INPUT_TYPES()['required'].items()}
    return kind().give(**{**values, **{key: widgets[key] for key in widgets if key in values}})[0]


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('name', COMFYUI)
def test_a_name_that_both_have_gives_comfyuis_numbers(comfy: Any, name: str, kind: str) -> None:
    if name not in comfy.samplers.SAMPLER_NAMES:
        pytest.skip('this ComfyUI does not have it')
    n = 1 if name == 'dpm_adaptive' else 2  # its steps are those of the whole batch in ComfyUI
    theirs = run(guider(comfy, kind), comfy.samplers.sampler_object(name), levels(kind), n)
    sampler = node(K.sampling.find_sampler(name).name, noise='ComfyUI', time='model')
    ours = run(guider(comfy, kind), sampler, levels(kind), n)
    differs = DIFFERENT.get(name, 1e-5) if kind == 'FLOW' else 1e-5
    if name.startswith(('dpmpp_sde', 'uni_pc')):
        # a Brownian path at a level that float32 rounds in two ways; weights of ComfyUI's UniPC in
        # float32, which at the level 0.001 are wrong by 1e-4 (in float64 they agree to 6e-7)
        differs = max(differs, 1e-3)
    assert (ours - theirs).norm() / theirs.norm() < differs


@pytest.mark.parametrize('kind', ['EPS', 'FLOW'])
def test_schedules_that_both_have(comfy: Any, kind: str) -> None:
    """10 steps, which divide the 1,000 levels of the table, as ddim_uniform of ComfyUI needs."""
    model = patcher(comfy, kind)
    scaling = model.get_model_object('model_sampling')
    give = pack.NODE_CLASS_MAPPINGS['KDiffusionSchedule']().give
    errors = {}
    for name in comfy.samplers.SCHEDULER_NAMES:
        theirs = comfy.samplers.calculate_sigmas(scaling, name, 10)
        (ours,) = give(model, name, 10, 1.0)
        errors[name] = (ours - theirs).abs().max() / theirs.max() if len(ours) == 11 else 1.0
    # that of flows, which falls outside the range of another model; ComfyUI shifts the last level
    # of a flow twice
    expected = {'linear_quadratic'} if kind == 'EPS' else {'normal', 'sgm_uniform'}
    assert {name for name, error in errors.items() if error > 2e-4} == expected
    assert kind == 'EPS' or max(errors.values()) < 0.01


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('name', ENTRIES)
def test_every_sampler_repaints_under_a_mask(comfy: Any, name: str, kind: str) -> None:
    mask = torch.zeros(2, 1, 8, 8)
    mask[..., 4:] = 1
    reports: list[int] = []
    ours = run(
        guider(comfy, kind),
        node(name),
        levels(kind, 0.7),
        denoise_mask=mask,
        callback=lambda i, denoised, x, total: reports.append(total),
    )
    latent = draw(3, 4)[:2]
    assert ours.isfinite().all() and (ours - latent)[..., 4:].abs().max() > 0.1
    limit = 0.2 if 'sigma_min' in ENTRIES[name].takes or name == 'sei' else 0.005
    assert (ours - latent)[..., :4].abs().max() < limit
    assert reports and {*reports} == {6}


@pytest.mark.parametrize('name', ['dpmpp_2m_sde', 'euler_ancestral', 'dpm_adaptive'])
def test_a_picture_does_not_depend_on_its_batch(comfy: Any, name: str) -> None:
    together = run(guider(comfy, 'EPS'), node(name), levels('EPS'), 3)
    alone = run(guider(comfy, 'EPS'), node(name), levels('EPS'), 1)
    torch.testing.assert_close(together[:1], alone)


def test_comfyui_can_interrupt_a_run(comfy: Any) -> None:
    import comfy.model_management as management

    reports: list[int] = []

    def preview(i: int, denoised: Tensor, x: Tensor, total: int) -> None:
        reports.append(i)
        management.interrupt_current_processing(i == 2)
        management.throw_exception_if_processing_interrupted()

    with pytest.raises(management.InterruptProcessingException):
        run(guider(comfy, 'FLOW'), node('heun'), levels('FLOW'), callback=preview)
    assert reports == [0, 1, 2]


@pytest.mark.parametrize('kind', ['EPS', 'FLOW'])
@pytest.mark.parametrize('scale', [1.0, 2.0, None])
@pytest.mark.parametrize('whole', [False, True])
def test_the_stand_in_behaves_as_comfyui(
    comfy: Any, kind: str, scale: float | None, whole: bool, monkeypatch: Any, tmp_path: Path
) -> None:
    """Starts, masks, previews and guidance; no scale means no negative condition."""
    node_guider = guider(comfy, kind, scale or 1.0)
    if scale is None:
        del node_guider.original_conds['negative']
    scaling = node_guider.model_patcher.get_model_object('model_sampling')
    sigmas = levels(kind, float(scaling.sigma_max) if whole else None)
    mask = torch.ones(2, 1, 8, 8)
    mask[..., :2] = 0
    previews: list[tuple[Any, ...]] = []
    settings = {
        'denoise_mask': mask,
        'callback': lambda *info: previews.append((info[0], info[3], info[2].clone())),
    }
    theirs = run(node_guider, node('euler_cfg_pp'), sigmas, **settings)

    def denoise(x: Tensor, sigma: Tensor, positive: bool) -> Tensor:
        level, context = sigma.reshape(-1, 1, 1, 1), torch.full((2, 3, 8), positive - 0.5)
        if kind == 'FLOW':
            t = sigma / (1 + sigma)
            x = x / (1 + level)
            return x - t.reshape(-1, 1, 1, 1) * Network()(x, 1000 * t, context)
        return x - level * Network()(
            x / (1 + level**2).sqrt(), scaling.timestep(sigma).float(), context
        )

    base: Any = stand_in.CONST if kind == 'FLOW' else stand_in.EPS
    ends = {'sigma_min': scaling.sigma_min, 'sigma_max': scaling.sigma_max}
    model = stand_in.Model(denoise, type('Sampling', (base,), ends)())
    again, reports = stand_in.Guider(model, scale or 1.0, scale is not None), list(previews)
    previews.clear()
    stand_in.install(monkeypatch, tmp_path)
    ours = run(again, node('euler_cfg_pp'), sigmas, **settings)
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=2e-4)
    assert [each[:2] for each in previews] == [each[:2] for each in reports]
    for (*_, x), (*_, expected) in zip(previews, reports):
        torch.testing.assert_close(x, expected, atol=2e-4, rtol=2e-4)


def test_comfyui_loads_the_linked_folder(comfy: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(os.environ.get('COMFYUI', ''))
    nodes = pytest.importorskip('nodes', exc_type=ImportError)
    (tmp_path / 'k-diffusion').symlink_to(Path(pack.__file__).parent)
    monkeypatch.setattr(nodes, 'NODE_CLASS_MAPPINGS', {})
    assert asyncio.run(nodes.load_custom_node(str(tmp_path / 'k-diffusion')))
    assert nodes.NODE_CLASS_MAPPINGS.keys() == pack.NODE_CLASS_MAPPINGS.keys()
    kinds = SimpleNamespace(**nodes.NODE_CLASS_MAPPINGS)
    assert kinds.KDiffusion_euler.RELATIVE_PYTHON_MODULE == 'custom_nodes.k-diffusion'
