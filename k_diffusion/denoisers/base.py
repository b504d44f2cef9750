"""The base class of denoisers: D = c_skip x + c_out F(c_in x), and the target for training F."""

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

    A subclass defines `scalings` and, if F takes other arguments than (c_in x, sigma), `network`.
    The
    arithmetic is in float32 at least, for any dtype of x; the network gets its own dtype, and D
    returns that of x.

    Args:
        inner_model: The network.
        sigma_data: The standard deviation of the data.

    References:
        Karras et al. (2022), arXiv:2206.00364, section 5.
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
        """Return (c_skip, c_out, c_in), each [B].

        Args:
            sigma: The noise levels, [B].
        """

    def network(self, x: Tensor, sigma: Tensor, **cond: Any) -> Any:
        """Call F.

        Args:
            x: The scaled input, in the dtype of the network.
            sigma: The noise levels, in float32 at least.
            **cond: Conditions.
        """
        return self.inner_model(x, sigma.to(x.dtype), **cond)

    def forward(self, input: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        """Return D(x, sigma) in the shape of x.

        Args:
            input: x, [B, ...].
            sigma: The noise levels, [B], or one number.
            **cond: Conditions.
        """
        x, sigma = at_least_float32(input, sigma)
        c_skip, c_out, c_in = (append_dims(c, x.ndim) for c in self.scalings(sigma))
        return (self.predict(x * c_in, sigma, **cond) * c_out + x * c_skip).to(input.dtype)

    def loss(self, input: Tensor, noise: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        """Return the mean squared error of F per item, [B], at x = input + sigma noise.

        Args:
            input: Clean data, [B, ...].
            noise: Standard normal noise of the same shape.
            sigma: The noise levels, [B].
            **cond: Conditions.
        """
        x, sigma, target = self.example(input, noise, sigma)
        return mean_per_item((self.predict(x, sigma, **cond) - target) ** 2)

    def example(self, input: Tensor, noise: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the input and the target of F at x = input + sigma noise.

        Args:
            input: Clean data, [B, ...].
            noise: Standard normal noise of the same shape.
            sigma: The noise levels, [B].

        Returns:
            (c_in x, sigma [B], (input - c_skip x) / c_out).
        """
        input, sigma = at_least_float32(input, sigma)
        c_skip, c_out, c_in = (append_dims(c, input.ndim) for c in self.scalings(sigma))
        x = input + noise * append_dims(sigma, input.ndim)
        return x * c_in, sigma, (input - c_skip * x) / c_out

    def predict(self, x: Tensor, sigma: Tensor, **cond: Any) -> Any:
        """Call `network` in its own dtype, and return its output in the dtype of x.

        Args:
            x: The scaled input.
            sigma: The noise levels, [B].
            **cond: Conditions.

        Returns:
            A tensor, or a tuple for a network that returns several.
        """
        dtype = own_dtype(self.inner_model, x.dtype)
        output = self.network(x.to(dtype), sigma, **cast_floating(cond, dtype))
        return (
            output.to(x.dtype)
            if isinstance(output, Tensor)
            else tuple(t.to(x.dtype) for t in output)
        )


def at_least_float32(x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor]:
    """Convert x to float32 or its own wider dtype, and sigma to [B] in the same dtype.

    Args:
        x: [B, ...].
        sigma: [B], [1] or one number.

    Raises:
        ValueError: If sigma has another shape.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
    if sigma.shape not in ((), (1,), (len(x),)):
        raise ValueError(
            f'sigma must be one number, or one for each of the {len(x)} items of x [B, ...]; '
            f'got the shapes {list(sigma.shape)} and {list(x.shape)} of x'
        )
    return x, sigma.expand(len(x))


def own_dtype(network: Any, default: torch.dtype) -> torch.dtype:
    """Return the dtype in which a network computes.

    It is that of its first parameter of 16 bits or more. An object that holds the network in an
    attribute counts as the network.

    Args:
        network: The network.
        default: The dtype for networks without such parameters.
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
