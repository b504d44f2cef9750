"""Sharded checkpoints: a folder NAME_STEP.shards with one file per process.

They can be resumed by any number of processes. The first file holds the tree of the state, with
{"sharded": i} in place of a tensor in shards; each file holds its shards by i, cut along their
first axis. All are .pth files of tensors, numbers and text.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.errors import Unsaved
from ...core.files import FileDigest, sync_folder, temporary_path
from ...core.weights import save_checkpoint
from ..sharding import is_sharded, local
from .disk import is_full, size_of
from .folder import RunFolder


def has_pieces(state: Any) -> bool:
    """Return True if any tensor of a state is sharded over processes.

    Args:
        state: A tree of tensors.
    """
    if isinstance(state, Mapping):
        return any(has_pieces(value) for value in state.values())
    return any(map(has_pieces, state)) if isinstance(state, (list, tuple)) else is_sharded(state)


def save_shards(
    folder: RunFolder, state: Mapping[str, Any], metrics: Mapping[str, float], rank: int, world: int
) -> Path:
    """Write a sharded checkpoint; all processes must call it.

    It is renamed and recorded when all processes have written. On a full disk, superfluous
    checkpoints are deleted first, and writing is repeated.

    Args:
        folder: The folder of the run.
        state: The state.
        metrics: The metrics of the checkpoint.
        rank: The number of this process.
        world: The number of processes.

    Returns:
        The folder of the checkpoint.

    Raises:
        OSError: If a process cannot write.
    """
    step = state['step']
    path = folder.checkpoint_path(step).with_suffix('.shards')
    pieces: list[Tensor] = []
    tree = _split_state({**(folder.extra or {}), **state} if rank == 0 else state, pieces)
    content = {
        'world': world,
        'pieces': dict(enumerate(pieces)),
        **({'tree': tree} if rank == 0 else {}),
    }
    temporary, digests, error = _write_by_all(folder, path, content, step, rank, world)
    if error is not None and _make_room(folder, step, metrics, error, rank):
        temporary, digests, error = _write_by_all(folder, path, content, step, rank, world)
    if error is not None:
        raise error
    if rank == 0:
        with folder.failures(step, size_of(content)):
            folder.manifest.drop(path.name)
            shutil.rmtree(path, ignore_errors=True)
            sync_folder(temporary)
            temporary.replace(path)
            sync_folder(path.parent)
            folder.record(
                path,
                step,
                {f'{path.name}/{name}': facts for name, facts in digests.items()},
                metrics,
            )
    torch.distributed.barrier()
    return path


def _write_by_all(
    folder: RunFolder, path: Path, content: Any, step: int, rank: int, world: int
) -> tuple[Path, dict[str, FileDigest], OSError | None]:
    """Have each process write its shard into a temporary folder, which the first creates.

    Returns:
        The folder, what each process has written, and on all processes an error if one of them
            could not write.
    """
    temporary = [temporary_path(path)]
    torch.distributed.broadcast_object_list(temporary)
    error: OSError | None = None
    mine: tuple[str, FileDigest] | None = None
    name = f'rank_{rank:05}.pth'
    try:
        with folder.failures(step, size_of(content)):
            temporary[0].mkdir(exist_ok=True)
            mine = name, save_checkpoint(temporary[0] / name, content)
    except OSError as os_error:
        error = os_error
    everyone: list[Any] = [None] * world
    torch.distributed.all_gather_object(everyone, (mine, error is not None and is_full(error)))
    missing = [other for other, (entry, _) in enumerate(everyone) if entry is None]
    if missing and error is None:
        code = errno.ENOSPC if any(full for _, full in everyone) else errno.EIO
        error = Unsaved(
            code,
            f'process {missing[0]} could not write its shard of the checkpoint of step {step} '
            '(see its own message)',
        )
    if missing and rank == 0:
        shutil.rmtree(temporary[0], ignore_errors=True)
    return (
        temporary[0],
        {entry[0]: FileDigest(*entry[1]) for entry, _ in everyone if entry is not None},
        error,
    )


def _make_room(
    folder: RunFolder, step: int, metrics: Mapping[str, float], error: OSError, rank: int
) -> bool:
    """Delete old checkpoints on the first process; return True on all if it deleted any."""
    deleted = [rank == 0 and is_full(error) and folder.make_room(step, metrics)]
    torch.distributed.broadcast_object_list(deleted)
    return bool(deleted[0])


def _split_state(value: Any, pieces: list[Tensor]) -> Any:
    """Replace sharded tensors in a tree by references, and append their shards to `pieces`."""
    if isinstance(value, Mapping):
        return {key: _split_state(item, pieces) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_split_state(item, pieces) for item in value]
    if is_sharded(value):
        pieces.append(local(value).detach().contiguous())
        return {'sharded': len(pieces) - 1}
    return value
