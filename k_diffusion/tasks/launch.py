"""Compare the number of processes that accelerate launch was given with what it started."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

_OPTION = re.compile(r'\0--num[_-]processes[\0=](\d+)\0')


def warn_of_one_process() -> None:
    """Warn if accelerate launch was given several processes but started this one alone.

    It does so on CPUs, and on GPUs without its option multi_gpu. The number is read from its
    command line, on systems with /proc.
    """
    if 'ACCELERATE_MIXED_PRECISION' not in os.environ or 'WORLD_SIZE' in os.environ:
        return
    processes = _read_processes(_command_of(os.getppid()))
    if processes > 1:
        warnings.warn(
            f'accelerate launch started 1 process instead of {processes}; pass it its option '
            f'multi_gpu, or use torchrun with its option nproc-per-node set to {processes}',
            stacklevel=2,
        )


def _command_of(process: int) -> str:
    """Return the words of a command line, a NUL after each; '' if it cannot be read."""
    try:
        return Path(f'/proc/{process}/cmdline').read_text(errors='replace')
    except OSError:
        return ''


def _read_processes(command: str) -> int:
    match = _OPTION.search(command)
    return int(match[1]) if match else 1
