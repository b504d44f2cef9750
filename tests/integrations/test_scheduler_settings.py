"""The settings of a pipeline's own scheduler, read by KDiffusionScheduler."""

import pytest
import torch

import k_diffusion as K

diffusers = pytest.importorskip('diffusers', reason='diffusers is in the extra "diffusers"')
from tiny_pipelines import BETAS, differ, latents, ours  # noqa: E402

from k_diffusion.external.schedulers import make_denoiser  # noqa: E402

KDiffusionScheduler = K.integrations.diffusers.KDiffusionScheduler


def test_zero_terminal_snr():
    """sigma begins at 4096, which stands for infinity; the v of pure noise there is -clean."""
    base = diffusers.EulerDiscreteScheduler(
        **BETAS,
        rescale_betas_zero_snr=True,
        prediction_type='v_prediction',
        timestep_spacing='trailing',
    )
    scheduler = ours(base, sampler='euler')
    scheduler.set_timesteps(4)
    base.set_timesteps(4)
    assert float(scheduler.levels[0]) == pytest.approx(4096, rel=1e-3)
    torch.testing.assert_close(scheduler.timesteps, base.timesteps.float())
    x = latents() * scheduler.init_noise_sigma
    theirs = base.step(0.1 * latents(seed=3), base.timesteps[0], x).prev_sample
    mine = scheduler.step(0.1 * latents(seed=3), scheduler.timesteps[0], x).prev_sample
    assert differ(mine, theirs) < 1e-4  # float32 at x of about 4096


@pytest.mark.parametrize(
    'base',
    [
        diffusers.EDMEulerScheduler(),
        diffusers.EDMEulerScheduler(prediction_type='v_prediction'),
        diffusers.EulerDiscreteScheduler(
            timestep_type='continuous',
            prediction_type='v_prediction',
            sigma_min=0.002,
            sigma_max=700.0,
        ),
        diffusers.EulerDiscreteScheduler(**BETAS, use_karras_sigmas=True),
        diffusers.EulerDiscreteScheduler(prediction_type='sample'),
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, shift_terminal=0.1),
    ],
)
def test_the_network_means_what_it_means_to_their_euler(base):
    """The same times, scaled inputs and steps as diffusers' own Euler schedulers, whose levels
    are taken over.
    """
    scheduler = ours(base, sampler='euler')
    for each in (base, scheduler):
        each.set_timesteps(5)
    torch.testing.assert_close(scheduler.timesteps, base.timesteps.float(), rtol=2e-4, atol=1e-4)
    x = mine = latents() * scheduler.init_noise_sigma
    for t, t_mine in zip(base.timesteps, scheduler.timesteps):
        if hasattr(base, 'scale_model_input'):
            torch.testing.assert_close(
                scheduler.scale_model_input(mine, t_mine),
                base.scale_model_input(x, t),
                rtol=1e-4,
                atol=1e-4,
            )
        x = base.step(0.5 * x / (1 + x.abs().max()), t, x).prev_sample
        mine = scheduler.step(0.5 * mine / (1 + mine.abs().max()), t_mine, mine).prev_sample
    assert differ(mine, x) < 3e-4  # a flow's first time is 1 there, 1 - 1e-4 here


def test_flow_sigmas_of_unipc_and_its_shift():
    base = diffusers.UniPCMultistepScheduler(
        use_flow_sigmas=True, flow_shift=5.0, prediction_type='flow_prediction'
    )
    scheduler = ours(base, sampler='dpmpp_2m')
    scheduler.set_timesteps(8)
    base.set_timesteps(8)
    torch.testing.assert_close(
        scheduler.sigmas[1:].double(), base.sigmas[1:].double(), rtol=1e-5, atol=1e-6
    )
    assert scheduler.init_noise_sigma == 1


def test_add_noise():
    scheduler = KDiffusionScheduler('heun', 'karras', **BETAS)
    scheduler.set_timesteps(6)
    clean, noise = latents(), latents(seed=3)
    for i in (0, 3):
        noisy = scheduler.add_noise(clean, noise, scheduler.timesteps[[i]])
        torch.testing.assert_close(noisy, clean + noise * scheduler.sigmas[i], rtol=1e-5, atol=1e-5)
    flow = ours(diffusers.FlowMatchEulerDiscreteScheduler(), sampler='euler')
    noisy = flow.scale_noise(clean, torch.tensor([250.0, 800.0]), noise)
    torch.testing.assert_close(noisy[1], 0.2 * clean[1] + 0.8 * noise[1])


@pytest.mark.parametrize(
    'kind',
    [
        'DDIMScheduler',
        'DDPMScheduler',
        'PNDMScheduler',
        'LMSDiscreteScheduler',
        'EulerDiscreteScheduler',
        'EulerAncestralDiscreteScheduler',
        'HeunDiscreteScheduler',
        'KDPM2DiscreteScheduler',
        'KDPM2AncestralDiscreteScheduler',
        'DPMSolverMultistepScheduler',
        'DPMSolverSinglestepScheduler',
        'DEISMultistepScheduler',
        'UniPCMultistepScheduler',
        'SASolverScheduler',
        'LCMScheduler',
        'TCDScheduler',
        'UnCLIPScheduler',
        'EDMEulerScheduler',
        'EDMDPMSolverMultistepScheduler',
        'FlowMatchEulerDiscreteScheduler',
        'FlowMatchHeunDiscreteScheduler',
        'FlowMatchLCMScheduler',
        'LTXEulerAncestralRFScheduler',
    ],
)
def test_the_settings_of_every_scheduler(kind):
    """The scheduler itself gives the meaning of a network's answer.

    Compared are the denoiser and the levels at the same times.
    """
    base = getattr(diffusers, kind)()
    scheduler = ours(base, sampler='euler')
    scheduler.set_timesteps(5)
    theirs = make_denoiser(scheduler.denoiser.inner_model, base)
    assert type(theirs) is type(scheduler.denoiser)
    sigma = torch.tensor([0.5, 3.0])
    torch.testing.assert_close(theirs.scalings(sigma), scheduler.denoiser.scalings(sigma))
    torch.testing.assert_close(
        theirs.network(sigma, sigma), scheduler.denoiser.network(sigma, sigma), rtol=1e-4, atol=1e-3
    )
    if kind in (
        'LCMScheduler',
        'TCDScheduler',
    ):  # distilled networks know the times that they were distilled at
        base.set_timesteps(5)
        torch.testing.assert_close(scheduler.timesteps, base.timesteps.float())


@pytest.mark.parametrize(
    'kind',
    [
        'KarrasVeScheduler',
        'IPNDMScheduler',
        'ScoreSdeVeScheduler',
        'CMStochasticIterativeScheduler',
        'CogVideoXDDIMScheduler',
        'DDPMWuerstchenScheduler',
        'SCMScheduler',
    ],
)
def test_settings_of_another_kind_are_refused(kind):
    scheduler = getattr(diffusers, kind, None)
    if scheduler is None:
        pytest.skip(f'this diffusers has no {kind}')
    with pytest.raises(ValueError, match=r'config must|prediction must'):
        ours(scheduler(), sampler='euler')
