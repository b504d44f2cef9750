"""Read checkpoints to resume from, and load weights into models."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ...core.weights import load_checkpoint
from ..sharding import cut_state
from .manifest import check_recorded

_NEEDED = ('model', 'model_ema', 'opt', 'sched', 'ema_sched', 'step')
#: The types of the entries of a checkpoint; entries that are not needed may be None.
_TYPES: dict[str, Any] = {
    **dict.fromkeys(
        (
            'model',
            'model_ema',
            'opt',
            'sched',
            'ema_sched',
            'config',
            'overrides',
            'data',
            'ema_stats',
            'loss_by_noise',
            'scaler',
        ),
        Mapping,
    ),
    **dict.fromkeys(('step', 'items', 'seed', 'draws'), int),
    'elapsed': (int, float),
    'demo_gen': Tensor,
    **dict.fromkeys(('opt_names', 'bad_steps', 'owed'), (list, tuple)),
}


def read_training_checkpoint(path: str | os.PathLike[str], verify: bool = True) -> dict[str, Any]:
    """Read a checkpoint of this package or of the original to resume from.

    No code in the file is executed.

    Args:
        path: The checkpoint.
        verify: Compare it with the manifest beside it.

    Raises:
        ValueError: If it is damaged, or not a checkpoint of a training run.
    """
    state = load_state(path, verify)
    missing = (
        [key for key in _NEEDED if key not in state] if isinstance(state, dict) else list(_NEEDED)
    )
    if missing:
        raise ValueError(
            f'{path} lacks {", ".join(missing)}; resume from a checkpoint of a training run '
            '(resume_inference=... takes weights alone)'
        )
    _check_types(path, state)
    return state


def _check_types(path: object, state: Mapping[str, Any]) -> None:
    """Raise a ValueError for an entry of another type."""
    for key, kind in _TYPES.items():
        value = state.get(key)
        if (value is not None or key in _NEEDED) and not isinstance(value, kind):
            raise ValueError(
                f'{path} holds {type(value).__name__} as {key!r}, which training does '
                'not write; use an older one from the same folder'
            )
        if kind is int and value is not None and not 0 <= value < 2**63:
            raise ValueError(
                f'{path} holds {value!r:.80} as {key!r}, which must be from 0 to 2^63; '
                'use an older one from the same folder'
            )


def load_state(path: str | os.PathLike[str], verify: bool = True) -> Any:
    """Read a checkpoint: a file, or a folder with a sharded one. No code in it is executed.

    Args:
        path: The file or folder.
        verify: Compare it with the manifest beside it.

    Raises:
        ValueError: If it is damaged.
    """
    if verify:
        check_recorded(Path(path))
    if Path(path).is_dir():
        return read_shards(Path(path))
    return load_checkpoint(path)


def read_shards(path: Path) -> Any:
    """Read a sharded checkpoint and gather its tensors, like the result of `load_checkpoint`.

    Args:
        path: The folder of the checkpoint.

    Raises:
        ValueError: If it is not a sharded checkpoint.
    """
    first = load_checkpoint(path / 'rank_00000.pth')
    if (
        not isinstance(first, dict)
        or 'tree' not in first
        or not isinstance(first.get('world'), int)
    ):
        raise ValueError(
            f'{path} is not a sharded checkpoint; use an older one from the same folder'
        )
    files = [
        first,
        *(load_checkpoint(path / f'rank_{rank:05}.pth') for rank in range(1, first['world'])),
    ]
    whole = {i: torch.cat([file['pieces'][i] for file in files]) for i in first['pieces']}
    return _replace_shards(first['tree'], whole)


def _replace_shards(value: Any, whole: Mapping[int, Tensor]) -> Any:
    """Replace the references to shards in a tree by whole tensors."""
    if isinstance(value, dict):
        if value.keys() == {'sharded'}:
            return whole[value['sharded']]
        return {key: _replace_shards(item, whole) for key, item in value.items()}
    return [_replace_shards(item, whole) for item in value] if isinstance(value, list) else value


def load_weights(
    model: nn.Module, weights: Mapping[str, Tensor], source: object = 'the checkpoint'
) -> None:
    """Load weights into a model of the same shape.

    Args:
        model: The model.
        weights: The weights by name.
        source: Their file, for messages.

    Raises:
        ValueError: If a weight is missing, or has another shape.
    """
    fix = 'use the config it was trained with, or another name to start again'
    check_tensors(weights, source)
    for name, own in model.state_dict().items():
        if name in weights and weights[name].shape != own.shape:
            raise ValueError(
                f'{source} holds {name} of shape {list(weights[name].shape)}, '
                f'and the model has {list(own.shape)}; {fix}'
            )
    keys = model.load_state_dict(cut_state(weights, model.state_dict()), strict=False)
    for odd, where in (
        (keys.missing_keys, 'in the model and not in'),
        (keys.unexpected_keys, 'not in the model but in'),
    ):
        if odd:
            raise ValueError(f'{odd[0]} is {where} {source} ({len(odd)} such in all); {fix}')


def check_tensors(weights: object, source: object) -> None:
    """Raise a ValueError if weights are not tensors by name.

    Args:
        weights: The weights.
        source: Their file, for messages.
    """
    values = weights.values() if isinstance(weights, Mapping) else [weights]
    for value in values:
        if not isinstance(value, Tensor):
            raise ValueError(
                f'{source} holds {type(value).__name__} among its weights, which must '
                'be tensors by name; use a checkpoint that training wrote'
            )


def unwrap(model: nn.Module) -> nn.Module:
    """Return the network inside DistributedDataParallel and torch.compile.

    Args:
        model: The network, wrapped or not.
    """
    while True:
        inner = (
            model.module
            if isinstance(model, DistributedDataParallel)
            else getattr(model, '_orig_mod', None)
        )
        if inner is None:
            return model
        model = inner
