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
    """Puts a model into training mode (or, with mode False, evaluation mode) and restores each
    module's flag after.

    A context manager and a decorator.
    """
    flags = [module.training for module in model.modules()]
    try:
        yield model.train(mode)
    finally:
        for module, flag in zip(model.modules(), flags):
            module.training = flag


def eval_mode(model: nn.Module) -> Any:
    """`train_mode(model, False)`."""
    return train_mode(model, False)


def n_params(module: nn.Module) -> int:
    """The number of parameters of a module."""
    return sum(p.numel() for p in module.parameters())


@contextmanager
def tf32_mode(cudnn: bool | None = None, matmul: bool | None = None) -> Iterator[None]:
    """Allows or forbids TF32 in convolutions (cudnn) and matrix products (matmul); None leaves a
    setting as it is.
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
_in_compiled_code = (
    False  # the same for torch's compiler, which cannot look into a thread's own state
)


@contextmanager
def checkpointing(enable: bool = True) -> Iterator[None]:
    """Within it, blocks that support it drop their activations and recompute them in the
    backward pass (this thread).
    """
    global _in_compiled_code
    before = get_checkpointing()
    _state.checkpointing = _in_compiled_code = enable
    try:
        yield
    finally:
        _state.checkpointing = _in_compiled_code = before


def get_checkpointing() -> bool:
    """Whether gradient checkpointing is on in this thread."""
    if torch.compiler.is_compiling():
        return _in_compiled_code
    return getattr(_state, 'checkpointing', False)


def checkpoint(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """function(*args, **kwargs), its activations recomputed in the backward pass where
    checkpointing is on.

    (Not under forward-mode differentiation, which keeps no activations and which torch's checkpoint
    does not pass on.)
    """
    if get_checkpointing() and torch.is_grad_enabled() and not forward_mode():
        return torch_checkpoint.checkpoint(function, *args, use_reentrant=False, **kwargs)
    return function(*args, **kwargs)


def forward_mode() -> bool:
    """Whether forward-mode derivatives (torch.func.jvp) are being taken, which torch's fastest
    kernels do not know.
    """
    return forward_ad._current_level >= 0
