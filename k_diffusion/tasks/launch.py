"""How many processes accelerate launch was asked for, and how many it started."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

_ASKED = re.compile(r'\0--num[_-]processes[\0=](\d+)\0')


def warn_of_one_process() -> None:
    """Warn where accelerate launch was asked for several processes and started this one alone.

    It does so on CPUs, and on GPUs without its option multi_gpu. The number is known from its
    command line alone, which can be read where there is /proc.
    """
    if 'ACCELERATE_MIXED_PRECISION' not in os.environ or 'WORLD_SIZE' in os.environ:
        return
    asked = _processes_asked(_command_of(os.getppid()))
    if asked > 1:
        warnings.warn(
            f'accelerate launch was asked for {asked} processes and started one; give it '
            f'its option multi_gpu, or take torchrun with its option nproc-per-node, {asked}',
            stacklevel=2,
        )


def _command_of(process: int) -> str:
    """Return the words of a command line, a NUL after each; '' where it cannot be read."""
    try:
        return Path(f'/proc/{process}/cmdline').read_text(errors='replace')
    except OSError:
        return ''


def _processes_asked(command: str) -> int:
    found = _ASKED.search(command)
    return int(found[1]) if found else 1
