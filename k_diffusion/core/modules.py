"""Modules and modes: training flags, parameter counts, TF32, gradient checkpointing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils import checkpoint as torch_checkpoint


@contextmanager
def train_mode(model: nn.Module, mode: bool = True) -> Iterator[nn.Module]:
    """Set a model to training or evaluation mode, and restore the flag of each module afterwards.

    A context manager and a decorator.

    Args:
        model: The model.
        mode: True for training mode, False for evaluation mode.
    """
    flags = [module.training for module in model.modules()]
    try:
        yield model.train(mode)
    finally:
        for module, flag in zip(model.modules(), flags):
            module.training = flag


def eval_mode(model: nn.Module) -> Any:
    """Return `train_mode(model, False)`.

    Args:
        model: The model.
    """
    return train_mode(model, False)


def n_params(module: nn.Module) -> int:
    """Return the number of parameters of a module.

    Args:
        module: The module.
    """
    return sum(p.numel() for p in module.parameters())


@contextmanager
def tf32_mode(cudnn: bool | None = None, matmul: bool | None = None) -> Iterator[None]:
    """Allow or forbid TF32 in this context; None leaves a setting unchanged.

    Args:
        cudnn: TF32 in convolutions.
        matmul: TF32 in matrix products.
    """
    backends: list[Any] = [torch.backends.cudnn, torch.backends.cuda.matmul]
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend, allow in zip(backends, (cudnn, matmul)):
            if allow is not None:
                backend.allow_tf32 = allow
        yield
    finally:
        for backend, allow in zip(backends, before):
            backend.allow_tf32 = allow


_state = threading.local()
# The same for torch's compiler, which cannot read thread-local state.
_in_compiled_code = False


@contextmanager
def checkpointing(enable: bool = True) -> Iterator[None]:
    """Recompute activations in the backward pass, in blocks that support it, in this thread.

    Args:
        enable: False disables it in this context.
    """
    global _in_compiled_code
    before = get_checkpointing()
    _state.checkpointing = _in_compiled_code = enable
    try:
        yield
    finally:
        _state.checkpointing = _in_compiled_code = before


def get_checkpointing() -> bool:
    """Return True if gradient checkpointing is enabled in this thread."""
    if torch.compiler.is_compiling():
        return _in_compiled_code
    return getattr(_state, 'checkpointing', False)


def checkpoint(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return function(*args, **kwargs), recomputing its activations if checkpointing is enabled.

    Forward-mode differentiation is exempt: it keeps no activations, and torch's checkpoint does not
    support it.

    Args:
        function: The function.
        *args: Its arguments.
        **kwargs: Its keyword arguments.
    """
    if get_checkpointing() and torch.is_grad_enabled() and not forward_mode():
        return torch_checkpoint.checkpoint(function, *args, use_reentrant=False, **kwargs)
    return function(*args, **kwargs)


def forward_mode() -> bool:
    """Return True during forward-mode differentiation, which torch's fastest kernels lack."""
    return forward_ad._current_level >= 0
