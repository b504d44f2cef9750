"""Switches in environment variables, and gradient checkpointing under its old name.

K_DIFFUSION_USE_COMPILE=1, set before the import, compiles the small kernels of the transformers
separately, which is unnecessary if a whole network is compiled. K_DIFFUSION_USE_FLASH_2=0 is only
reported to callers of get_use_flash_attention_2.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

from ..core.modules import checkpointing, get_checkpointing

__all__ = [
    'checkpointing',
    'compile_wrap',
    'get_checkpointing',
    'get_use_compile',
    'get_use_flash_attention_2',
]

F = TypeVar('F', bound=Callable[..., Any])


def get_use_compile() -> bool:
    """Return whether small kernels are compiled; off by default: it needs a C++ compiler."""
    return os.environ.get('K_DIFFUSION_USE_COMPILE', '0') == '1'


def get_use_flash_attention_2() -> bool:
    """Return whether flash attention is allowed."""
    return os.environ.get('K_DIFFUSION_USE_FLASH_2', '1') == '1'


def compile_wrap(function: F, *args: Any, **kwargs: Any) -> F:
    """Return torch.compile(function, ...) if get_use_compile(), else the function.

    Args:
        function: The function.
        *args: Arguments of torch.compile.
        **kwargs: Likewise.
    """
    return cast(F, torch.compile(function, *args, **kwargs)) if get_use_compile() else function
