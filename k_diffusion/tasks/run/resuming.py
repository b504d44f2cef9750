"""Where a run goes on, and what differs from the run that wrote the checkpoint: one process
chooses, all of them read.
"""

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
from ...training import RunFolder, Trainer, read_training_checkpoint
from ...training.checkpoints.retention import LOSS_SINCE
from ...training.noise_levels import LossByNoise
from .settings import TrainSettings

#: Of larger data sets the digest is that of so many pictures, evenly spaced.
_DIGESTED_BYTES, _DIGESTED = 2**26, 256

Resumed = tuple[Path | None, dict[str, Any] | None]


def resume_from(
    asked: str | os.PathLike[str] | None, folder: RunFolder, accelerator: Any, verify: bool = True
) -> Resumed:
    """The checkpoint asked for, else the newest of the run that is whole, and its path; (None,
    None) where a run begins.

    Raises ValueError where a process cannot see the checkpoint that the first one chose.
    """
    if asked:
        path = find_checkpoint(asked, verify) if is_url(asked) else Path(asked)
        return path, read_training_checkpoint(path, verify)
    if accelerator.num_processes == 1:
        return folder.newest() or (None, None)
    found = (folder.newest() or (None, None)) if accelerator.is_main_process else (None, None)
    chosen = [None if found[0] is None else str(found[0])]
    torch.distributed.broadcast_object_list(chosen)
    if chosen[0] is None or accelerator.is_main_process:
        return found
    if not Path(chosen[0]).exists():
        raise ValueError(
            f'process {accelerator.process_index} does not see {chosen[0]}, which the run goes on '
            'from; '
            'put the run on a disk that all machines share (run_dir=...)'
        )
    return Path(chosen[0]), read_training_checkpoint(chosen[0])


def overrides_of(settings: TrainSettings, processes: int, seed: int) -> dict[str, Any]:
    """Return what settings say in place of the config or beside it, by 'section.key'."""
    given = {
        'optimizer.lr': settings.lr,
        'training.batch_size': settings.batch_size,
        'training.end_step': settings.end_step,
        'training.ema_snapshots': settings.ema_snapshots,
        'training.held_out': settings.held_out
        if isinstance(settings.held_out, (int, str))
        else None,
    }
    return {
        **{key: value for key, value in given.items() if value is not None},
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
    """Return what differs from the config of a checkpoint and takes effect.

    Statistics of latents and of tensors that the config leaves to the data are taken over from the
    checkpoint, whose weights were trained on data scaled by them.

    Raises:
        ValueError: What differs changes the meaning or the shape of the weights.
    """
    for name in ('encoder', 'dataset'):
        stored, section = (
            (state.get('config') or {}).get(name) or {},
            getattr(experiment.sections, name),
        )
        found = {
            key: stored[key]
            for key in ('mean', 'std')
            if getattr(section, key, '') is None and stored.get(key) is not None
        }
        if found:
            experiment.update(name, **found)
    changes = changes_of(state, experiment.as_dict(), overrides)
    check_changes(changes, path, reset_optimizer)
    return changes


def facts_of(dataset: Dataset, encoder: LatentEncoder | None = None) -> dict[str, Any]:
    """Return what identifies the data of a run: count and digest of the pictures, the digest of
    the encoder's weights.
    """
    n = 0 if isinstance(dataset, (RowStream, StreamData)) else len(dataset)
    state = hashlib.blake2b(
        repr((n, dataset.image_shape, dataset.class_names)).encode(), digest_size=16
    )
    if isinstance(dataset, TensorData):
        few = torch.tensor(_spaced(n))
        tensors = {'image': dataset.images, **dataset.tensors}
        state.update(fingerprint({key: value[few] for key, value in tensors.items()}).encode())
    elif isinstance(dataset, Images):
        whole = dataset.images.numel() <= _DIGESTED_BYTES
        state.update(raw_bytes(dataset.images if whole else dataset.images[_spaced(n)]))
        if dataset.labels is not None:
            state.update(raw_bytes(dataset.labels.contiguous().view(torch.uint8)))
    elif dataset.streams:
        state.update(str(dataset.fingerprint()).encode())
    elif dataset.fingerprint() is not None:  # (others may give another picture each time)
        for index in _spaced(n):
            state.update(_item_bytes(dataset, index))
    network = None if encoder is None else fingerprint(encoder.network.state_dict())
    return {'images': n, 'digest': state.hexdigest(), 'encoder': network}


def changed_data(
    old: Mapping[str, Any] | None, new: Mapping[str, Any], path: Path | None
) -> list[str]:
    """Return a note where the data set is not that of a checkpoint.

    Args:
        old: What `facts_of` gave then, None where that is not known.
        new: What it gives now.
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


def begin_losses(trainer: Trainer) -> None:
    """Begin the averages of the loss anew: from this step on it means something else, and is
    compared with none before.
    """
    trainer.ema_stats = {LOSS_SINCE: float(trainer.step)}
    trainer.loss_by_noise = LossByNoise(device=trainer.accelerator.device)


def tell_changes(
    notes: Sequence[str],
    reset_optimizer: bool,
    say: Callable[[str], None],
    reset_ema: bool = False,
    other_loss: bool = False,
) -> None:
    """Say in one note what is another than when the checkpoint was saved."""
    notes = [
        *notes,
        *(["the optimizer's moments start anew"] if reset_optimizer else []),
        *(['the average of the weights starts anew'] if reset_ema else []),
    ]
    if notes:
        say(
            f'note: what differs from before takes effect: {", ".join(notes)}'
            + (
                '; losses before and after cannot be compared, and their averages begin anew'
                if other_loss
                else ''
            )
        )


def _spaced(n: int) -> list[int]:
    """At most so many numbers below n, evenly spaced, the first and the last among them."""
    count = min(n, _DIGESTED)
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
