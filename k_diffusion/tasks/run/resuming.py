"""Resume a run from a checkpoint, and compare it with the run that wrote the checkpoint."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...config import Experiment, find_checkpoint
from ...config.changes import Change, changes_of, check_changes
from ...core.images import raw_bytes
from ...core.remote import is_url
from ...core.weights import fingerprint
from ...data import Dataset, Images, RowStream, StreamData, TensorData, UnreadablePicture
from ...encoders import LatentEncoder
from ...training import RunFolder, read_training_checkpoint
from .settings import TrainSettings

#: Above this size of a data set, its digest covers this number of evenly spaced pictures.
_DIGEST_BYTES, _DIGEST_ITEMS = 2**26, 256

Resumed = tuple[Path | None, dict[str, Any] | None]


def resume_from(
    request: str | os.PathLike[str] | None, folder: RunFolder, accelerator: Any, verify: bool = True
) -> Resumed:
    """Return the path and the state of the checkpoint that a run continues from.

    It is the requested one, else the newest one of the run that is whole; (None, None) for a new
    run.

    Args:
        request: A path or a URL, or None.
        folder: The folder of the run.
        accelerator: accelerate's Accelerator; its first process chooses.
        verify: Compare the file with its manifest.

    Raises:
        ValueError: A process cannot see the checkpoint that the first one chose.
    """
    if request:
        path = find_checkpoint(request, verify) if is_url(request) else Path(request)
        return path, read_training_checkpoint(path, verify)
    if accelerator.num_processes == 1:
        return folder.newest() or (None, None)
    newest = (folder.newest() or (None, None)) if accelerator.is_main_process else (None, None)
    paths = [None if newest[0] is None else str(newest[0])]
    torch.distributed.broadcast_object_list(paths)
    if paths[0] is None or accelerator.is_main_process:
        return newest
    if not Path(paths[0]).exists():
        raise ValueError(
            f'run_dir must be on a file system that all machines share; process '
            f'{accelerator.process_index} cannot find {paths[0]}, the checkpoint to resume from'
        )
    return Path(paths[0]), read_training_checkpoint(paths[0])


def overrides_of(settings: TrainSettings, processes: int, seed: int) -> dict[str, Any]:
    """Return the settings that override the config or add to it, by 'section.key'.

    Args:
        settings: The settings of the run.
        processes: The number of processes.
        seed: The seed.
    """
    values = {
        'optimizer.lr': settings.lr,
        'training.batch_size': settings.batch_size,
        'training.end_step': settings.end_step,
        'training.ema_snapshots': settings.ema_snapshots,
        'training.held_out': settings.held_out
        if isinstance(settings.held_out, (int, str))
        else None,
    }
    return {
        **{key: value for key, value in values.items() if value is not None},
        'run.grad_accum_steps': settings.grad_accum_steps,
        'run.processes': processes,
        'run.seed': seed,
        'run.mixed_precision': settings.mixed_precision or 'no',
    }


def accepted_changes(
    state: Mapping[str, Any],
    experiment: Experiment,
    overrides: Mapping[str, Any],
    path: Path | None,
    reset_optimizer: bool,
) -> list[Change]:
    """Return the differences from the config of a checkpoint that take effect.

    Statistics of latents and of tensors that the config leaves to the data are taken from the
    checkpoint, whose weights were trained on data scaled by them.

    Args:
        state: The checkpoint.
        experiment: The experiment of the run, which is updated.
        overrides: The result of `overrides_of`.
        path: The path of the checkpoint, for messages.
        reset_optimizer: The moments of the optimizer restart.

    Raises:
        ValueError: A difference changes the meaning or the shape of the weights.
    """
    for name in ('encoder', 'dataset'):
        old, section = (
            (state.get('config') or {}).get(name) or {},
            getattr(experiment.sections, name),
        )
        statistics = {
            key: old[key]
            for key in ('mean', 'std')
            if getattr(section, key, '') is None and old.get(key) is not None
        }
        if statistics:
            experiment.update(name, **statistics)
    changes = changes_of(state, experiment.as_dict(), overrides)
    check_changes(changes, path, reset_optimizer)
    return changes


def facts_of(dataset: Dataset, encoder: LatentEncoder | None = None) -> dict[str, Any]:
    """Return the identity of the data of a run: counts and digests.

    Args:
        dataset: The data set.
        encoder: The encoder to latents, whose weights are part of it.
    """
    n = 0 if isinstance(dataset, (RowStream, StreamData)) else len(dataset)
    state = hashlib.blake2b(
        repr((n, dataset.image_shape, dataset.class_names)).encode(), digest_size=16
    )
    if isinstance(dataset, TensorData):
        few = torch.tensor(_space_evenly(n))
        tensors = {'image': dataset.images, **dataset.tensors}
        state.update(fingerprint({key: value[few] for key, value in tensors.items()}).encode())
    elif isinstance(dataset, Images):
        whole = dataset.images.numel() <= _DIGEST_BYTES
        state.update(raw_bytes(dataset.images if whole else dataset.images[_space_evenly(n)]))
        if dataset.labels is not None:
            state.update(raw_bytes(dataset.labels.contiguous().view(torch.uint8)))
    elif dataset.streams:
        state.update(str(dataset.fingerprint()).encode())
    elif dataset.fingerprint() is not None:  # (others may give another picture each time)
        for index in _space_evenly(n):
            state.update(_item_bytes(dataset, index))
    network = None if encoder is None else fingerprint(encoder.network.state_dict())
    return {'images': n, 'digest': state.hexdigest(), 'encoder': network}


def changed_data(
    old: Mapping[str, Any] | None, new: Mapping[str, Any], path: Path | None
) -> list[str]:
    """Return a note if the data set differs from that of a checkpoint.

    Args:
        old: The earlier result of `facts_of`; None if it is not known.
        new: The result now.
        path: The checkpoint, for messages.

    Raises:
        ValueError: The encoder is another one.
    """
    if not old:
        return []
    if old['encoder'] != new['encoder']:
        raise ValueError(
            f'{path} was trained on latents of an autoencoder with other weights; set '
            'encoder.location to that one, '
            'or begin a new run (another name=...)'
        )
    if old['digest'] == new['digest']:
        return []
    if old['images'] == new['images']:
        return ['the data set (other pictures or classes, as many as before)']
    return [f'the data set {old["images"]:,} -> {new["images"]:,} images']


def tell_changes(
    notes: Sequence[str],
    reset_optimizer: bool,
    say: Callable[[str], None],
    reset_ema: bool = False,
    other_loss: bool = False,
) -> None:
    """Report in one note what changed since the checkpoint was saved.

    Args:
        notes: Descriptions of changes.
        reset_optimizer: The moments of the optimizer restart.
        say: Report a line of text.
        reset_ema: The average of the weights restarts.
        other_loss: The loss has another meaning.
    """
    notes = [
        *notes,
        *(["the optimizer's moments restart"] if reset_optimizer else []),
        *(['the average of the weights restarts'] if reset_ema else []),
    ]
    if notes:
        say(
            f'note: changed settings take effect: {", ".join(notes)}'
            + (
                '; losses before and after are not comparable, and their averages restart'
                if other_loss
                else ''
            )
        )


def _space_evenly(n: int) -> list[int]:
    """Return evenly spaced numbers below n, including the first and the last."""
    count = min(n, _DIGEST_ITEMS)
    return [i * (n - 1) // max(1, count - 1) for i in range(count)]


def _item_bytes(dataset: Dataset, index: int) -> bytes:
    try:
        item = dataset[index]
    except UnreadablePicture:
        return b'unreadable'
    return (
        bytes(raw_bytes(item['image'].contiguous().view(torch.uint8)))
        + str(item.get('class_cond')).encode()
    )
