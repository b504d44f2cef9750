import pytest
import torch
from sampler_cases import suited

from k_diffusion.core.random import derive_seed, randn_items
from k_diffusion.generation import generate
from k_diffusion.sampling import SAMPLERS, get_sigmas_karras

SIGMAS = get_sigmas_karras(6, 0.1, 10.)


def denoise(x, sigma, shift=None):
    """The exact denoiser of a Gaussian of deviation 0.5 around `shift`."""
    mean = 0. if shift is None else shift[:, None, None, None]
    s = sigma[:, None, None, None]**2
    return mean + (x - mean) * 0.25 / (0.25 + s)


@pytest.mark.parametrize('name', SAMPLERS)
def test_an_image_is_its_seed_whatever_the_batch(name):
    together = generate(suited(name, denoise), [1, 4, 4], SIGMAS, name, [3, 4, 5, 6, 7], batch_size=5)
    assert together.shape == (5, 1, 4, 4) and together.std() > 0.1 and together.isfinite().all()
    apart = generate(suited(name, denoise), [1, 4, 4], SIGMAS, name, [3, 4, 5, 6, 7], batch_size=2)
    torch.testing.assert_close(apart, together, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(together[0], together[1])


def test_conditions_go_with_their_items_and_decode_comes_last():
    shift = torch.tensor([-5., 0., 5.])
    images = generate(denoise, [1, 8, 8], SIGMAS, 'dpmpp_2m', [0, 1, 2], {'shift': shift}, decode=lambda z: z + 100, batch_size=2)
    assert ((images - 100).mean((1, 2, 3)) - shift).abs().max() < 0.5


def test_the_start_noise_is_named_by_the_seed():
    seen = []
    generate(denoise, [1, 2, 2], SIGMAS, 'euler', [11], callback=lambda done, info: seen.append((done, info['x'].clone())))
    assert len(seen) == 6 and torch.equal(seen[0][1], randn_items((1, 2, 2), [derive_seed(11, 'start')]) * float(SIGMAS[0]))


def test_global_randomness_is_neither_used_nor_moved():
    before = torch.get_rng_state()
    generate(denoise, [1, 2, 2], SIGMAS, 'dpmpp_2m_sde', [1, 2])
    generate(denoise, [1, 2, 2], SIGMAS, 'euler', [1, 2], options={'s_churn': 3.})
    assert torch.equal(torch.get_rng_state(), before)


def test_refusals_name_what_is_allowed():
    with pytest.raises(ValueError, match="did you mean 'dpmpp_2m'"):
        generate(denoise, [1, 2, 2], SIGMAS, 'dpmp_2m')
    with pytest.raises(ValueError, match="no option 'churn'.*s_churn"):
        generate(denoise, [1, 2, 2], SIGMAS, 'euler', options={'churn': 1.})
    with pytest.raises(ValueError, match='2 entries for 1 seeds'):
        generate(denoise, [1, 2, 2], SIGMAS, cond={'shift': torch.zeros(2)})
    with pytest.raises(ValueError, match='batch_size is 0'):
        generate(denoise, [1, 2, 2], SIGMAS, batch_size=0)
