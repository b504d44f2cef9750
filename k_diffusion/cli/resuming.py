"""Where a run goes on: one process chooses the checkpoint, all of them read it."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from ..training import RunFolder, read_training_checkpoint

Resumed = tuple[Path | None, dict[str, Any] | None]


def resume_from(asked: str | os.PathLike[str] | None, folder: RunFolder, accelerator: Any) -> Resumed:
    """The checkpoint asked for, else the newest of the run that is whole, and its path; (None, None) where a run begins.

    Raises ValueError where a process cannot see the checkpoint that the first one chose.
    """
    if asked:
        return Path(asked), read_training_checkpoint(asked)
    if accelerator.num_processes == 1:
        return folder.newest() or (None, None)
    found = (folder.newest() or (None, None)) if accelerator.is_main_process else (None, None)
    chosen = [None if found[0] is None else str(found[0])]
    torch.distributed.broadcast_object_list(chosen)
    if chosen[0] is None or accelerator.is_main_process:
        return found
    if not Path(chosen[0]).exists():
        raise ValueError(f'process {accelerator.process_index} does not see {chosen[0]}, which the run goes on from; '
                         'put the run on a disk that all machines share (--run-dir)')
    return Path(chosen[0]), read_training_checkpoint(chosen[0])
