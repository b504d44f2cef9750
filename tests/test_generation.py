import numpy as np
import pytest
import torch
from sampler_cases import suited

import k_diffusion as K
from k_diffusion.core.random import derive_seed, randn_items
from k_diffusion.generation import (
    SamplingConfig,
    choose_plan,
    choose_sampling,
    generate,
    sample,
)
from k_diffusion.sampling import SAMPLERS, get_sigmas_karras

SIGMAS = get_sigmas_karras(6, 0.1, 10.0)


def denoise(x, sigma, shift=None):
    """The exact denoiser of a Gaussian of deviation 0.5 around `shift`."""
    mean = 0.0 if shift is None else shift[:, None, None, None]
    s = sigma[:, None, None, None] ** 2
    return mean + (x - mean) * 0.25 / (0.25 + s)


@pytest.mark.parametrize('name', SAMPLERS)
def test_an_image_is_its_seed_whatever_the_batch(name):
    together = generate(
        suited(name, denoise), [1, 4, 4], SIGMAS, name, [3, 4, 5, 6, 7], batch_size=5
    )
    assert together.shape == (5, 1, 4, 4) and together.std() > 0.1 and together.isfinite().all()
    apart = generate(suited(name, denoise), [1, 4, 4], SIGMAS, name, [3, 4, 5, 6, 7], batch_size=2)
    torch.testing.assert_close(apart, together, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(together[0], together[1])


def test_conditions_go_with_their_items_and_decode_comes_last():
    shift = torch.tensor([-5.0, 0.0, 5.0])
    images = generate(
        denoise,
        [1, 8, 8],
        SIGMAS,
        'dpmpp_2m',
        [0, 1, 2],
        {'shift': shift},
        decode=lambda z: z + 100,
        batch_size=2,
    )
    assert ((images - 100).mean((1, 2, 3)) - shift).abs().max() < 0.5


def test_the_start_noise_is_named_by_the_seed():
    states = []
    generate(
        denoise,
        [1, 2, 2],
        SIGMAS,
        'euler',
        [11],
        callback=lambda done, info: states.append((done, info['x'].clone())),
    )
    assert len(states) == 6 and torch.equal(
        states[0][1], randn_items((1, 2, 2), [derive_seed(11, 'start')]) * float(SIGMAS[0])
    )


def test_global_randomness_is_neither_used_nor_moved():
    before = torch.get_rng_state()
    generate(denoise, [1, 2, 2], SIGMAS, 'dpmpp_2m_sde', [1, 2])
    generate(denoise, [1, 2, 2], SIGMAS, 'euler', [1, 2], options={'s_churn': 3.0})
    assert torch.equal(torch.get_rng_state(), before)


def test_refusals_name_what_is_allowed():
    with pytest.raises(ValueError, match="did you mean 'dpmpp_2m'"):
        generate(denoise, [1, 2, 2], SIGMAS, 'dpmp_2m')
    with pytest.raises(ValueError, match="options of sample_.*s_churn.*; got 'churn'"):
        generate(denoise, [1, 2, 2], SIGMAS, 'euler', options={'churn': 1.0})
    with pytest.raises(ValueError, match='one entry for each of 1 seeds; got 2'):
        generate(denoise, [1, 2, 2], SIGMAS, cond={'shift': torch.zeros(2)})
    with pytest.raises(ValueError, match='batch_size must be >= 1; got 0'):
        generate(denoise, [1, 2, 2], SIGMAS, batch_size=0)


@pytest.mark.parametrize('steps', [1, 2, 5, 8, 15, 40])
def test_sample_spends_the_steps_as_model_calls(steps):
    calls = []

    def counted(x, sigma):
        calls.append(sigma[0].item())
        return denoise(x, sigma)

    images = sample(counted, [3, 1, 4, 4], steps, seeds=0)
    assert len(calls) == steps and images.shape == (3, 1, 4, 4) and images.dtype == torch.float32
    assert max(calls) <= 80 and calls == sorted(calls, reverse=True)
    if steps >= 5:
        assert images.std().item() == pytest.approx(0.5, abs=0.15)


def ramp(n, low, high, rho):
    """The levels of Karras et al. (2022), equation 5, and 0."""
    levels = [
        (high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
        for i in range(n)
    ]
    return [*levels, 0.0]


@pytest.mark.parametrize(
    ('section', 'guided', 'sampler', 'levels'),
    [
        ({'steps': 8}, False, 'zeab', ramp(9, 50 / 8**4, 80.0, 7.0)),  # the first step is free
        ({'steps': 8, 'guidance': 2.0}, True, 'ipndm', ramp(9, 50 / 8**4, 80.0, 7.0)),
        ({}, False, 'zeab', ramp(21, 0.002, 80.0, 7.0)),
        (
            {'guidance': 2.0},
            False,
            'zeab',
            ramp(21, 0.002, 80.0, 7.0),
        ),  # the model has no classes to guide by
        ({'sampler': 'heun'}, False, 'heun', ramp(20, 0.002, 80.0, 7.0)),
        (
            {'schedule': 'exponential', 'steps': 5},
            False,
            'dpmpp_2m',
            [*np.geomspace(80, 0.002, 5), 0.0],
        ),
        (
            {'sampler': 'dpmpp_2m', 'schedule': 'karras', 'steps': 20},
            True,
            'dpmpp_2m',
            ramp(20, 0.002, 80.0, 7.0),
        ),
    ],
)
def test_a_config_that_names_no_sampler_has_the_recommended_one(section, guided, sampler, levels):
    sigmas, choice, _ = choose_plan(denoise, choose_sampling(section), guided)
    assert choice == sampler and sigmas.tolist() == pytest.approx(levels, rel=1e-6)


def test_a_request_wins_over_the_config():
    section = {
        'sampler': 'heun',
        'schedule': 'karras',
        'steps': 20,
        'guidance': 2.0,
        'guidance_interval': None,
        'of_a_fork': 1,
    }
    assert choose_sampling(
        section, sampler='DPM++ 2M Exponential', steps=5, guidance=None
    ) == SamplingConfig('dpmpp_2m', 5, 'exponential', 2.0)
    assert choose_sampling(section, sampler='sample_lms', schedule='beta') == SamplingConfig(
        'lms', 20, 'beta', 2.0
    )


def test_sample_with_a_sampler_or_a_schedule_of_choice():
    levels = []
    K.sample(
        denoise,
        [2, 1, 4, 4],
        6,
        'heun',
        'exponential',
        seeds=0,
        sigma_min=0.1,
        sigma_max=10.0,
        callback=lambda done, info: levels.append(info['sigma'].item()),
    )
    assert levels == pytest.approx(K.sampling.get_sigmas_exponential(6, 0.1, 10.0)[:-1].tolist())
    by_function = K.sample(denoise, [2, 1, 4, 4], 6, K.sampling.sample_heun, seeds=0)
    assert torch.equal(by_function, K.sample(denoise, [2, 1, 4, 4], 6, 'heun', 'karras', seeds=0))
    assert not torch.equal(
        by_function, K.sample(denoise, [2, 1, 4, 4], 6, schedule='karras', seeds=0)
    )


def test_sample_takes_the_range_of_the_denoiser():
    class Ranged:
        sigma_min, sigma_max = torch.tensor(0.2), torch.tensor(5.0)

        def __call__(self, x, sigma):
            levels.append(sigma[0].item())
            return denoise(x, sigma)

    levels = []
    K.sample(Ranged(), [1, 1, 4, 4], 5, 'euler', seeds=0)
    assert (levels[0], levels[-1]) == (5.0, pytest.approx(0.2))


def test_noise_that_an_option_brings_in_is_the_items_own():
    whole = K.sample(denoise, [3, 1, 4, 4], 5, 'ddim', seeds=7, options={'eta': 1.0})
    assert torch.equal(
        whole,
        K.sample(denoise, [3, 1, 4, 4], 5, 'ddim', seeds=7, options={'eta': 1.0}, batch_size=1),
    )
    assert not torch.equal(whole, K.sample(denoise, [3, 1, 4, 4], 5, 'ddim', seeds=7))


def test_sample_seeds():
    whole = K.sample(denoise, [4, 1, 4, 4], 5, 'euler_ancestral', seeds=7)
    assert torch.equal(
        whole, K.sample(denoise, [4, 1, 4, 4], 5, 'euler_ancestral', seeds=7, batch_size=1)
    )
    seeds = [derive_seed(7, 'sample', i) for i in (2, 0)]
    assert torch.equal(
        whole[[2, 0]], K.sample(denoise, [2, 1, 4, 4], 5, 'euler_ancestral', seeds=seeds)
    )
    torch.manual_seed(3)
    first, second = (K.sample(denoise, [2, 1, 4, 4], 5) for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(first, K.sample(denoise, [2, 1, 4, 4], 5)) and not torch.equal(first, second)
    with pytest.raises(ValueError, match='one for each of 2 samples; got 3'):
        K.sample(denoise, [2, 1, 4, 4], 5, seeds=[1, 2, 3])


def test_sample_from_a_given_start():
    x = torch.randn(3, 1, 4, 4) * 10
    out = K.sample(denoise, x, 6, 'dpmpp_2m', seeds=0, sigma_min=0.1, sigma_max=10.0, batch_size=2)
    torch.testing.assert_close(out, K.sampling.sample_dpmpp_2m(denoise, x, SIGMAS, disable=True))


def test_sample_guides():
    def conditional(x, sigma, shift):
        return denoise(x, sigma, shift)

    shift = torch.tensor([1.0, 2.0])
    plain = K.sample(conditional, [2, 1, 8, 8], 20, seeds=0, cond={'shift': shift})
    guided = K.sample(
        conditional,
        [2, 1, 8, 8],
        20,
        seeds=0,
        cond={'shift': shift},
        guidance=3.0,
        null={'shift': 0.0},
    )
    assert (guided.mean((1, 2, 3)) / plain.mean((1, 2, 3)) > 1.5).all()
    same = K.sample(
        conditional,
        [2, 1, 8, 8],
        20,
        seeds=0,
        cond={'shift': shift},
        guidance=1.0,
        null={'shift': 0.0},
    )
    assert torch.equal(same, plain)


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        ({'shape_or_x': [4]}, r'got \[4\]'),
        ({'steps': 0}, 'steps must be >= 1; got 0'),
        ({'sampler': 'eulr'}, "did you mean 'euler'"),
        ({'schedule': 'karas'}, "did you mean 'karras'"),
        ({'guidance': 2.0}, 'null must be given for guidance=2.0'),
        ({'options': {'etta': 1.0}}, "options must be options of .*; got 'etta'"),
        ({'sigma_min': 9.0, 'sigma_max': 3.0}, '0 < sigma_min <= sigma_max'),
    ],
)
def test_sample_refuses(arguments, sentence):
    with pytest.raises(ValueError, match=sentence) as refusal:
        K.sample(denoise, **{'shape_or_x': [2, 1, 4, 4], 'seeds': 0, **arguments})
    assert str(refusal.value).count('\n') == 0


def test_sample_with_levels_of_ones_own():
    calls = []

    def counted(x, sigma):
        calls.append(sigma[0].item())
        return denoise(x, sigma)

    sigmas = [20.0, 4.0, 1.0, 0.2, 0.0]
    ours = K.sample(counted, [3, 1, 4, 4], sampler='euler', schedule=sigmas, seeds=0)
    assert calls == pytest.approx(sigmas[:-1])
    torch.testing.assert_close(
        ours,
        K.sample(denoise, [3, 1, 4, 4], 4, 'euler', torch.tensor(sigmas), seeds=0, sigma_max=20.0),
    )
    with pytest.raises(ValueError, match='make 4 steps from 20; got'):
        K.sample(denoise, [3, 1, 4, 4], 5, 'euler', sigmas)
    with pytest.raises(ValueError, match='ascend|descend|fall'):
        K.sample(denoise, [3, 1, 4, 4], sampler='euler', schedule=sigmas[::-1])


def test_sample_takes_a_calibrated_sampler():
    noises = (
        torch.randn(16, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 20
    )
    fitted = K.sampling.calibrate(
        lambda x, sigma: x * 0.25 / (0.25 + sigma[:, None] ** 2),
        noises,
        20.0,
        0.02,
        3,
        bases=['rab'],
    )
    calls = []

    def model(x, sigma):
        calls.append(sigma[0].item())
        return x * 0.25 / (0.25 + sigma[:, None] ** 2)

    out = K.sample(model, [400, 3], sampler=fitted.sampler(), seeds=0, batch_size=400)
    assert calls == pytest.approx(fitted.sigmas[1:-1]) and out.std().item() == pytest.approx(
        0.5, abs=0.04
    )
    assert torch.equal(
        out, K.sample(model, [400, 3], 3, fitted.sampler(), seeds=0, sigma_max=20.0, batch_size=400)
    )
    with pytest.raises(ValueError, match='make 3 steps from 20'):
        K.sample(model, [4, 3], 5, fitted.sampler())


@pytest.mark.parametrize('name', ['dpm_fast', 'dpm_adaptive'])
def test_samplers_without_a_list_stop_where_the_range_does(name):
    ends = []
    for steps in (1, 9):
        K.sample(
            lambda x, sigma: ends.append(sigma[0].item()) or denoise(x, sigma),
            [2, 1, 4, 4],
            steps,
            name,
            seeds=0,
            sigma_min=0.1,
            sigma_max=20.0,
        )
        assert ends[0] == pytest.approx(20.0) and ends[-1] == pytest.approx(0.1)


def test_dpm_adaptive_with_noise():
    options = {'eta': 1.0}
    out = K.sample(denoise, [3, 1, 4, 4], 5, 'dpm_adaptive', seeds=0, options=options)
    torch.testing.assert_close(
        out,
        K.sample(denoise, [3, 1, 4, 4], 5, 'dpm_adaptive', seeds=0, options=options, batch_size=1),
    )
    assert out.std().item() == pytest.approx(0.5, abs=0.2)
    samples = K.sample(
        denoise,
        [3, 1, 4, 4],
        5,
        'dpm_adaptive',
        seeds=0,
        options={'return_info': True, 'per_item': False},
        batch_size=1,
    )
    assert samples.shape == (3, 1, 4, 4)


def test_seeds_of_any_whole_kind():
    ours = [
        K.sample(denoise, [2, 1, 4, 4], 3, 'euler', seeds=seeds)
        for seeds in (3, np.int64(3), torch.tensor(3))
    ]
    assert torch.equal(ours[0], ours[1]) and torch.equal(ours[0], ours[2])
    ours = [
        K.sample(denoise, [2, 1, 4, 4], 3, 'euler', seeds=seeds)
        for seeds in ([5, 6], np.array([5, 6]), torch.tensor([5, 6]))
    ]
    assert torch.equal(ours[0], ours[1]) and torch.equal(ours[0], ours[2])


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ({'seeds': [1.5, 2.5]}, 'a seed must be an integer; got 1.5'),
        ({'seeds': 1.5}, 'seeds must be an integer; got 1.5'),
        ({'steps': 2.5}, 'steps must be an integer; got 2.5'),
        ({'sampler': ''}, 'unknown sampler'),
        ({'sampler': 3}, 'sampler must be a name, .*; got int'),
        ({'schedule': 'vp', 'sigma_max': 20.0}, 'which has its own noise levels'),
        ({'guidance_interval': (0.1, 2.0)}, 'must be None without guidance'),
        ({'cond': {'shift': [1.0, 2.0, 3.0]}}, 'one entry for each of 2 seeds; got 3'),
        ({'options': {'seed': 3}}, 'pass seeds instead'),
        ({'device': 'moon'}, 'device must be one that this machine'),
    ],
)
def test_mistakes_in_one_call(arguments, words):
    with pytest.raises(ValueError, match=words):
        K.sample(denoise, [2, 1, 4, 4], **arguments)
    with pytest.raises(ValueError, match=r'must be a batch.*got \[4, -2\]'):
        K.sample(denoise, [4, -2])


def test_sample_with_guidance_takes_what_suits_it():
    class Conditional:
        sigma_min, sigma_max = 0.02, 20.0

        def __call__(self, x, sigma, label):
            return denoise(x, sigma, label.float())

    arguments = {'cond': {'label': [1, 1]}, 'null': {'label': 0}, 'seeds': 0}
    guided = K.sample(Conditional(), [2, 1, 4, 4], 5, guidance=2.0, **arguments)
    named = K.sample(
        Conditional(),
        [2, 1, 4, 4],
        5,
        'zeab',
        'karras',
        guidance=2.0,
        sigma_min=0.08,
        options={'order': 2},
        **arguments,
    )
    already = K.guidance.classifier_free(Conditional(), {'label': 0}, 2.0)
    again = K.sample(already, [2, 1, 4, 4], 5, cond=arguments['cond'], seeds=0, sigma_max=20.0)
    assert (
        torch.equal(guided, named)
        and torch.equal(guided, again)
        and guided.mean().item() == pytest.approx(2.0, abs=0.3)
    )


class Table:
    """A denoiser of a discrete model: it has a table of levels."""

    sigmas = torch.linspace(0.05, 1.0, 20).exp()

    def __call__(self, x, sigma, **cond):
        return x * 0.5


@pytest.mark.parametrize('name', ['simple', 'ddim_uniform', 'normal', 'sgm_uniform', 'beta'])
def test_schedules_of_discrete_models_walk_the_models_table(name):
    levels = []
    wrapped = K.guidance.static_thresholding(Table())
    K.sample(
        wrapped,
        [1, 1, 2, 2],
        4,
        schedule=name,
        seeds=0,
        callback=lambda done, info: levels.append(float(info['sigma'])),
    )
    table = Table.sigmas.tolist()
    assert (
        all(min(abs(level - names) for names in table) < 0.04 * level for level in levels)
        and len(levels) == 4
    )
    if name != 'beta':  # which a model without a table has as well, in the clock of the levels
        with pytest.raises(ValueError, match='without a table of noise levels'):
            K.sample(denoise, [1, 1, 2, 2], 4, schedule=name)
    if name == 'simple':  # every fifth entry from the top
        assert levels == pytest.approx([table[i] for i in (19, 14, 9, 4)])


def test_what_is_no_denoiser_is_named_with_the_way_to_make_one():
    diffusers = pytest.importorskip('diffusers')
    network = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=('DownBlock2D',),
        up_block_types=('UpBlock2D',),
    )
    with pytest.raises(
        TypeError, match='a diffusers UNet2DModel. Wrap its network: K.external.from_diffusers'
    ):
        K.sample(network, [1, 1, 8, 8], 2)
    with pytest.raises(
        TypeError, match='a diffusers UNet2DModel. Wrap its network: K.external.from_diffusers'
    ):
        K.sample(torch.nn.DataParallel(network), [1, 1, 8, 8], 2)
    with pytest.raises(TypeError, match='Conv2d, which takes no sigma. Wrap the network'):
        K.sample(torch.nn.Conv2d(1, 1, 3), [1, 1, 8, 8], 2)
    bare = K.models.ImageDenoiserModelV1(1, 8, [1], [8], [False])
    with pytest.raises(
        TypeError,
        match='bare network, ImageDenoiserModelV1. Wrap it: K.config.make_denoiser_wrapper',
    ):
        K.sample(bare, [1, 1, 8, 8], 2)

    class Latent:
        def apply_model(self, x, t, cond): ...

    with pytest.raises(
        TypeError, match=r'Latent with apply_model. Wrap it: K.external.wrap\(model\)'
    ):
        K.sample(Latent(), [1, 1, 8, 8], 2)
    with pytest.raises(TypeError, match='denoiser must be a function .* got dict'):
        K.sample({}, [1, 1, 8, 8], 2)
