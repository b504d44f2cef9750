"""Switches of the environment, and gradient checkpointing under its old name.

K_DIFFUSION_USE_COMPILE=1, set before the import, compiles the small kernels of the transformers by
themselves (they need no help when a whole network is compiled); K_DIFFUSION_USE_FLASH_2=0 is
remembered for programs that ask.
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
    """Whether small kernels are to be compiled: off unless asked for, since that needs a C++
    compiler.
    """
    return os.environ.get('K_DIFFUSION_USE_COMPILE', '0') == '1'


def get_use_flash_attention_2() -> bool:
    """Whether flash attention is welcome where the hardware has it."""
    return os.environ.get('K_DIFFUSION_USE_FLASH_2', '1') == '1'


def compile_wrap(function: F, *args: Any, **kwargs: Any) -> F:
    """torch.compile(function, *args, **kwargs) where get_use_compile(), else the function
    itself.
    """
    return cast(F, torch.compile(function, *args, **kwargs)) if get_use_compile() else function
