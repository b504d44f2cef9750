"""The size of checkpoints, and explanations of errors of the disk that is to hold them."""

from __future__ import annotations

import contextlib
import errno
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from ..sharding import local

_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def size_of(state: Any) -> int:
    """Return the approximate size of a checkpoint in bytes.

    Args:
        state: The state.
    """
    tensors = [leaf for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor)]
    return int(sum(local(x).numel() * x.element_size() for x in tensors) * 1.02) + 2**16


def is_full(error: BaseException) -> bool:
    """Return True if an exception comes from a full disk, quota or file limit.

    Args:
        error: The exception.
    """
    cause = find_system_error(error)
    return cause is not None and cause.errno in _FULL


def find_system_error(error: BaseException | None) -> OSError | None:
    """Return the error of the system behind an exception of torch; None without one.

    Args:
        error: The exception.
    """
    while error is not None:
        if isinstance(error, OSError):
            return error
        error = error.__cause__ or error.__context__
    return None


def explain_error(cause: OSError, folder: Path, size: int) -> tuple[str, str]:
    """Return the reason why a checkpoint cannot be written, and the remedy.

    Args:
        cause: The error of the system.
        folder: The folder of the run.
        size: The size of the checkpoint in bytes.
    """
    if cause.errno in _FULL:
        return (
            f'the disk of {folder} is full ({_describe_space(folder, size)})',
            'make room (keep_last=3 deletes old checkpoints as it goes)',
        )
    name = cause.filename2 or cause.filename
    return f'{cause.strerror or cause}' + (f', {name}' if name else ''), 'correct that'


def _describe_space(folder: Path, size: int) -> str:
    """Return the size of the checkpoint, and how much must be freed for it, in words."""
    text = f'the checkpoint takes about {_megabytes(size)}'
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(folder).free
        if free < size:
            text += f' and {_megabytes(free)} are free: free at least {_megabytes(size - free)}'
    return text


def _megabytes(size: int) -> str:
    """Return a size in MB, rounded up to a tenth."""
    return f'{math.ceil(size / 1e5) / 10:,.1f} MB'
