"""Optimizers: a config for each, and how a model's parameter groups go into it."""

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
_SHARDED = {'FSDP', 'DEEPSPEED', 'MEGATRON_LM', 'XLA'}  # accelerate's names for gradients in pieces


class Trainable(Protocol):
    """A network that says how its parameters want to be trained.

    `param_groups(base_lr)` -> groups with their own lr and, where it is not the optimizer's,
    weight_decay; `hidden_parameters()` -> the matrices and convolutions between hidden features,
    which Muon takes.
    """

    def param_groups(self, base_lr: float) -> list[dict[str, Any]]: ...

    def hidden_parameters(self) -> list[nn.Parameter]: ...


class OptimizerConfig(Protocol):
    """What `OPTIMIZERS` holds: `make` gives the optimizer of a model, at another lr than its own
    where one is given.
    """

    def make(self, model: Trainable, lr: float | None = None) -> Optimizer: ...


OPTIMIZERS: Registry[type] = Registry('optimizer type')


@OPTIMIZERS.register('adamw')
@dataclass
class AdamWConfig:
    """torch.optim.AdamW, fused where the device has it."""

    type: Literal['adamw'] = 'adamw'
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        _check_at_least_0(self, 'lr', 'eps', 'weight_decay')
        _check_betas(self.betas)

    def make(self, model: Trainable, lr: float | None = None) -> Optimizer:
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
    """Adam with 8-bit state, of the package bitsandbytes."""

    type: Literal['adam8bit'] = 'adam8bit'  # type: ignore[assignment]

    def make(self, model: Trainable, lr: float | None = None) -> Optimizer:
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
    """torch.optim.SGD."""

    type: Literal['sgd'] = 'sgd'
    lr: float = 1e-4
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check_at_least_0(self, 'lr', 'momentum', 'weight_decay')
        if self.nesterov and self.momentum == 0:
            raise ValueError(
                'nesterov is true and momentum is 0; it needs a momentum above 0, such as 0.9'
            )

    def make(self, model: Trainable, lr: float | None = None) -> Optimizer:
        groups = parameter_groups(model, self.lr if lr is None else lr)
        return SGD(
            groups, momentum=self.momentum, nesterov=self.nesterov, weight_decay=self.weight_decay
        )


@OPTIMIZERS.register('muon')
@dataclass
class MuonConfig:
    """`Muon` for the model's hidden matrices and convolutions at `lr`, AdamW for the rest at
    `adamw_lr`.

    The lr of the settings of a run replaces `lr`, and `adamw_lr` follows in proportion.
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
            raise ValueError(f'lr is {self.lr}; it must be above 0')
        if not 0 <= self.momentum < 1:
            raise ValueError(f'momentum is {self.momentum}; it must be at least 0 and below 1')
        if self.ns_steps < 1:
            raise ValueError(f'ns_steps is {self.ns_steps}; it must be at least 1 (5 is usual)')
        _check_betas(self.betas)

    def make(self, model: Trainable, lr: float | None = None) -> Optimizer:
        factor = 1.0 if lr is None else lr / self.lr
        if not hasattr(model, 'hidden_parameters'):
            raise ValueError(
                f"optimizer must not be of type 'muon' for {type(model).__name__}, which has no "
                'method '
                'hidden_parameters() that names the matrices it is for; take adamw'
            )
        hidden = {id(p) for p in model.hidden_parameters()}
        groups = []
        for group in parameter_groups(model, 1.0):
            for muon, base_lr in (True, self.lr), (False, self.adamw_lr):
                params = [p for p in group['params'] if (id(p) in hidden) == muon]
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
    """Return the groups of a model's parameters: its own, else one without weight decay for
    vectors and scalars.
    """
    if hasattr(model, 'param_groups'):
        groups: list[dict[str, Any]] = model.param_groups(lr)
        return groups
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
    both = {'params': matrices, 'lr': lr}, {'params': vectors, 'lr': lr, 'weight_decay': 0.0}
    return [group for group in both if group['params']]


def make_optimizer(model: Trainable, config: OptimizerConfig, lr: float | None = None) -> Optimizer:
    """The optimizer of a model; the lr and weight-decay relations between the model's own groups
    are kept.
    """
    return config.make(model, lr)


def clip_gradients(accelerator: Any, params: list[nn.Parameter], max_norm: float) -> None:
    """Scales the gradients so that their norm is at most max_norm, in a few kernels and without a
    wait for a GPU.

    Gradients whose norm is no finite number become zeros, so that a broken batch does not spoil the
    weights.
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
    """Of all gradients together; where they lie in pieces on several processes, of all pieces."""
    norm = torch.stack(torch._foreach_norm(grads)).norm()
    if any(is_sharded(p) for p in params):
        square = norm.square()
        torch.distributed.all_reduce(square)
        norm = square.sqrt()
    return norm


def match_strides(optimizer: Optimizer) -> None:
    """Gives loaded state the memory format of its parameter: fused kernels walk both in the
    order they lie there.
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
    return all(p.device.type in _FUSED_DEVICES for group in groups for p in group['params'])


def _check_at_least_0(config: object, *keys: str) -> None:
    for key in keys:
        if not getattr(config, key) >= 0:
            raise ValueError(f'{key} is {getattr(config, key)}; it must be at least 0')


def _check_betas(betas: tuple[float, float]) -> None:
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(
            f'betas is {list(betas)}; it must be two numbers in [0, 1), such as [0.9, 0.99]'
        )
