"""What all denoisers made of a network share: D = c_skip x + c_out F(c_in x) and the target that
trains F, written once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..core.arguments import show_value
from ..core.conditions import cast_floating
from ..core.tensors import append_dims, mean_per_item
from .scalings import Scalings


class PreconditionedDenoiser(nn.Module, ABC):
    """A network F as a denoiser D(x, sigma, **cond).

    A subclass says `scalings` and, where F takes something else than (c_in x, sigma), `network`.

    x [B, ...] of any floating dtype, sigma [B] or one number. The arithmetic is done in float32 at
    least, whatever x is; the network is fed its own dtype, and D comes back in x's.
    """

    def __init__(self, inner_model: Callable[..., Any], sigma_data: float = 1.0) -> None:
        super().__init__()
        if isinstance(inner_model, (type, str, bytes, int, float, Tensor)):
            raise TypeError(
                'inner_model must be a network, an instance of its class; got '
                f'{show_value(inner_model)}'
            )
        self.inner_model = inner_model
        self.sigma_data = sigma_data

    @abstractmethod
    def scalings(self, sigma: Tensor) -> Scalings:
        """(c_skip, c_out, c_in), each [B]."""

    def network(self, x: Tensor, sigma: Tensor, **cond: Any) -> Any:
        """F at the scaled x (in the network's dtype) for sigma (in float32 at least)."""
        return self.inner_model(x, sigma.to(x.dtype), **cond)

    def forward(self, input: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        """D(x, sigma), shaped like x."""
        x, sigma = at_least_float32(input, sigma)
        c_skip, c_out, c_in = (append_dims(c, x.ndim) for c in self.scalings(sigma))
        return (self.predict(x * c_in, sigma, **cond) * c_out + x * c_skip).to(input.dtype)

    def loss(self, input: Tensor, noise: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        """[B]: the mean squared error of F at x = input + sigma noise."""
        x, sigma, target = self.example(input, noise, sigma)
        return mean_per_item((self.predict(x, sigma, **cond) - target) ** 2)

    def example(self, input: Tensor, noise: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What F is shown and asked for: (c_in x, sigma [B], (input - c_skip x) / c_out) at x =
        input + sigma noise.
        """
        input, sigma = at_least_float32(input, sigma)
        c_skip, c_out, c_in = (append_dims(c, input.ndim) for c in self.scalings(sigma))
        x = input + noise * append_dims(sigma, input.ndim)
        return x * c_in, sigma, (input - c_skip * x) / c_out

    def predict(self, x: Tensor, sigma: Tensor, **cond: Any) -> Any:
        """`network` in its own dtype, answered in x's; a network that gives several tensors is
        answered with several.
        """
        dtype = own_dtype(self.inner_model, x.dtype)
        output = self.network(x.to(dtype), sigma, **cast_floating(cond, dtype))
        return (
            output.to(x.dtype)
            if isinstance(output, Tensor)
            else tuple(t.to(x.dtype) for t in output)
        )


def at_least_float32(x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor]:
    """x in float32 or its own wider dtype, and sigma as [B] in the same."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
    if sigma.shape not in ((), (1,), (len(x),)):
        raise ValueError(
            f'sigma must be one number, or one for each of the {len(x)} items of x [B, ...]; '
            f'got the shapes {list(sigma.shape)} and {list(x.shape)} of x'
        )
    return x, sigma.expand(len(x))


def own_dtype(network: Any, default: torch.dtype) -> torch.dtype:
    """The dtype a network computes in: that of its first parameter of 16 bits or more, or the
    default where it has none.

    A plain object that holds the network in an attribute counts as it.
    """
    modules = (
        m for m in (network, *getattr(network, '__dict__', {}).values()) if isinstance(m, nn.Module)
    )
    return next(
        (
            p.dtype
            for m in modules
            for p in m.parameters()
            if p.is_floating_point() and p.itemsize > 1
        ),
        default,
    )
