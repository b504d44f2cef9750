"""Samplers run on one exact mixture, from one start, with one list of draws."""

from __future__ import annotations

import torch

from k_diffusion import sampling
from k_diffusion.denoisers.analytic import Mixture
from k_diffusion.sampling import SAMPLERS

MODEL = Mixture(
    torch.tensor([[1.0, 0.0], [-1.0, 0.7], [0.2, -1.2]], dtype=torch.float64),
    torch.tensor([0.3, 0.4, 0.5], dtype=torch.float64),
)
SIGMAS = sampling.get_sigmas_karras(9, 0.05, 20.0).double()
X = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 20
DRAWS = torch.randn(20, 8, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def run(name, **options):
    if 'noise_sampler' in SAMPLERS[name].options:
        draws = iter(DRAWS)
        options['noise_sampler'] = lambda sigma, sigma_next: next(draws)
    return SAMPLERS[name].function(MODEL, X, SIGMAS, disable=True, **options)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    assert a.std() > 0.3
