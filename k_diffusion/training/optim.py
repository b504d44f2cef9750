"""Optimizers: their configs, the parameter groups of a model, and clipping of gradients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from ..core.extras import MissingExtra
from ..core.registry import Registry
from .muon import Muon
from .sharding import is_sharded, local

_FUSED_DEVICES = {'cpu', 'cuda', 'mps', 'xpu'}
#: accelerate's names of the ways of training with sharded gradients.
_SHARDED = {'FSDP', 'DEEPSPEED', 'MEGATRON_LM', 'XLA'}


class Trainable(Protocol):
    """A network that describes how its parameters are trained."""

    def param_groups(self, base_lr: float) -> list[dict[str, Any]]:
        """Return groups with their own lr and, if it differs from the optimizer's, weight_decay.

        Args:
            base_lr: The learning rate of the run.
        """

    def hidden_parameters(self) -> list[nn.Parameter]:
        """Return the matrices and convolutions between hidden features, which Muon trains."""


class OptimizerConfig(Protocol):
    """A config in `OPTIMIZERS`."""

    def make(self, model: Trainable, lr: float | None = None) -> Optimizer:
        """Return the optimizer of a model.

        Args:
            model: The network.
            lr: A learning rate in place of the config's.
        """


OPTIMIZERS: Registry[type] = Registry('optimizer type')


@OPTIMIZERS.register('adamw')
@dataclass
class AdamWConfig:
    """The config of torch.optim.AdamW, fused if the device supports it."""

    type: Literal['adamw'] = 'adamw'
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        _check_at_least_0(self, 'lr', 'eps', 'weight_decay')
        _check_betas(self.betas)

    def make(self, model: Trainable, lr: float | None = None) -> Optimizer:
        """Return the optimizer of a model.

        Args:
            model: The network.
            lr: A learning rate in place of the config's.
        """
        groups = parameter_groups(model, self.lr if lr is None else lr)
        return AdamW(
            groups,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            fused=_can_fuse(groups),
        )


@OPTIMIZERS.register('adam8bit')
@dataclass
class Adam8bitConfig(AdamWConfig):
    """The config of Adam with 8-bit state, from the package bitsandbytes."""

    type: Literal['adam8bit'] = 'adam8bit'  # type: ignore[assignment]

    def make(self, model: Trainable, lr: float | None = None) -> Optimizer:
        """Return the optimizer of a model.

        Args:
            model: The network.
            lr: A learning rate in place of the config's.

        Raises:
            MissingExtra: If bitsandbytes is not installed.
        """
        try:
            from bitsandbytes.optim import Adam8bit
        except ImportError:
            raise MissingExtra(
                "the optimizer type 'adam8bit' needs the package 'bitsandbytes', which is not "
                'installed; install it with: pip install bitsandbytes'
            ) from None
        groups = parameter_groups(model, self.lr if lr is None else lr)
        return Adam8bit(groups, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay)


@OPTIMIZERS.register('sgd')
@dataclass
class SGDConfig:
    """The config of torch.optim.SGD."""

    type: Literal['sgd'] = 'sgd'
    lr: float = 1e-4
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check_at_least_0(self, 'lr', 'momentum', 'weight_decay')
        if self.nesterov and self.momentum == 0:
            raise ValueError(
                'momentum must be > 0 with nesterov; got 0. Use 0.9, or set nesterov to false'
            )

    def make(self, model: Trainable, lr: float | None = None) -> Optimizer:
        """Return the optimizer of a model.

        Args:
            model: The network.
            lr: A learning rate in place of the config's.
        """
        groups = parameter_groups(model, self.lr if lr is None else lr)
        return SGD(
            groups, momentum=self.momentum, nesterov=self.nesterov, weight_decay=self.weight_decay
        )


@OPTIMIZERS.register('muon')
@dataclass
class MuonConfig:
    """The config of `Muon`.

    Muon trains the hidden matrices and convolutions of the model at `lr`, AdamW the rest at
    `adamw_lr`. The lr of the settings of a run replaces `lr`, and scales `adamw_lr` in proportion.
    """

    type: Literal['muon'] = 'muon'
    lr: float = 4e-3
    momentum: float = 0.95
    nesterov: bool = True
    ns_steps: int = 5
    weight_decay: float = 1e-4
    adamw_lr: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        _check_at_least_0(self, 'adamw_lr', 'eps', 'weight_decay')
        if not self.lr > 0:
            raise ValueError(f'lr must be > 0; got {self.lr}')
        if not 0 <= self.momentum < 1:
            raise ValueError(f'momentum must be >= 0 and < 1; got {self.momentum}')
        if self.ns_steps < 1:
            raise ValueError(f'ns_steps must be >= 1 (5 is usual); got {self.ns_steps}')
        _check_betas(self.betas)

    def make(self, model: Trainable, lr: float | None = None) -> Optimizer:
        """Return the optimizer of a model.

        Args:
            model: The network.
            lr: A learning rate in place of the config's.

        Raises:
            ValueError: If the model has no method hidden_parameters().
        """
        factor = 1.0 if lr is None else lr / self.lr
        if not hasattr(model, 'hidden_parameters'):
            raise ValueError(
                f"optimizer must not be of type 'muon' for {type(model).__name__}, which has no "
                'method hidden_parameters() to select matrices; use adamw'
            )
        hidden_ids = {id(p) for p in model.hidden_parameters()}
        groups = []
        for group in parameter_groups(model, 1.0):
            for muon, base_lr in (True, self.lr), (False, self.adamw_lr):
                params = [p for p in group['params'] if (id(p) in hidden_ids) == muon]
                if params:
                    scaled = factor * base_lr * group.get('lr', 1.0)
                    groups.append({**group, 'params': params, 'lr': scaled, 'muon': muon})
        return Muon(
            groups,
            self.lr,
            self.momentum,
            self.nesterov,
            self.ns_steps,
            self.weight_decay,
            self.betas,
            self.eps,
            fused=_can_fuse(groups),
        )


def parameter_groups(model: Any, lr: float) -> list[dict[str, Any]]:
    """Return the parameter groups of a model.

    A model without a method `param_groups` gets one group for matrices and one without weight decay
    for vectors and scalars.

    Args:
        model: The network.
        lr: The learning rate.
    """
    if hasattr(model, 'param_groups'):
        groups: list[dict[str, Any]] = model.param_groups(lr)
        return groups
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
    both = {'params': matrices, 'lr': lr}, {'params': vectors, 'lr': lr, 'weight_decay': 0.0}
    return [group for group in both if group['params']]


def make_optimizer(model: Trainable, config: OptimizerConfig, lr: float | None = None) -> Optimizer:
    """Return the optimizer of a model.

    The ratios of lr and weight decay between the groups of the model do not change.

    Args:
        model: The network.
        config: The config of the optimizer.
        lr: A learning rate in place of the config's.
    """
    return config.make(model, lr)


def clip_gradients(accelerator: Any, params: list[nn.Parameter], max_norm: float) -> None:
    """Scale the gradients so that their norm is at most max_norm.

    It takes a few kernels, and does not wait for a GPU. Gradients whose norm is not finite become
    zeros, so that a broken batch does not destroy the weights.

    Args:
        accelerator: The accelerator.
        params: The parameters.
        max_norm: The largest norm.
    """
    if accelerator.distributed_type.value in _SHARDED:
        accelerator.clip_grad_norm_(params, max_norm)
        return
    accelerator.unscale_gradients()
    grads = [local(p.grad) for p in params if p.grad is not None]
    norm = _norm(grads, params)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0).nan_to_num(0.0)
    if not norm.is_cpu or not norm.isfinite():
        for grad in grads:
            grad.nan_to_num_(0.0, 0.0, 0.0)
        scale = torch.where(norm.isfinite(), scale, 0.0)
    torch._foreach_mul_(grads, scale)


def _norm(grads: list[Tensor], params: list[nn.Parameter]) -> Tensor:
    """Return the norm of all gradients together, and of all shards if they are sharded."""
    norm = torch.stack(torch._foreach_norm(grads)).norm()
    if any(is_sharded(p) for p in params):
        square = norm.square()
        torch.distributed.all_reduce(square)
        norm = square.sqrt()
    return norm


def match_strides(optimizer: Optimizer) -> None:
    """Convert loaded state to the memory format of its parameter, as fused kernels require.

    Args:
        optimizer: The optimizer.
    """
    for p, state in optimizer.state.items():
        for name, value in state.items():
            if (
                isinstance(value, Tensor)
                and value.shape == p.shape
                and value.stride() != p.stride()
            ):
                state[name] = torch.empty_like(p, dtype=value.dtype).copy_(value)


def _can_fuse(groups: Iterable[dict[str, Any]]) -> bool:
    """Return True if all parameters are on devices with a fused AdamW."""
    return all(p.device.type in _FUSED_DEVICES for group in groups for p in group['params'])


def _check_at_least_0(config: object, *keys: str) -> None:
    """Raise a ValueError if one of the values of a config is negative."""
    for key in keys:
        if not getattr(config, key) >= 0:
            raise ValueError(f'{key} must be >= 0; got {getattr(config, key)}')


def _check_betas(betas: tuple[float, float]) -> None:
    """Raise a ValueError if the decays of Adam are out of range."""
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(
            f'betas must be two numbers in [0, 1), such as [0.9, 0.99]; got {list(betas)}'
        )
