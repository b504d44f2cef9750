"""The folder of a run: checkpoints under the original's names, the pointer to the latest, the way back from them."""
from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..core.files import read_json, write_json
from ..core.weights import load_checkpoint, save_checkpoint

_NEEDED = ('model', 'model_ema', 'opt', 'sched', 'ema_sched', 'step')


@dataclass
class RunFolder:
    """Where a run writes: checkpoints `NAME_%08d.pth`, and `NAME_state.json` naming the latest of them."""
    path: Path
    name: str = 'model'
    extra: Mapping[str, Any] | None = None      # goes into every checkpoint, e.g. {'config': ...}

    def checkpoint_path(self, step: int) -> Path:
        return self.path / f'{self.name}_{step:08}.pth'

    @property
    def pointer_path(self) -> Path:
        return self.path / f'{self.name}_state.json'

    def save(self, state: Mapping[str, Any]) -> Path:
        """Writes a checkpoint, then the pointer: a stop in between leaves the pointer at an older, whole checkpoint."""
        path = self.checkpoint_path(state['step'])
        path.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(path, {**(self.extra or {}), **state})
        write_json(self.pointer_path, {'latest_checkpoint': str(path.relative_to(self.path))})
        return path

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The checkpoint to resume from: the pointer's, else the newest that can be read; None where there is none.

        Each one passed over is named in a warning. Raises ValueError where there are checkpoints and none can be read.
        """
        passed_over = 0
        for path in self._candidates():
            try:
                return path, read_training_checkpoint(path)
            except (ValueError, OSError) as error:
                passed_over += 1
                warnings.warn(f'{path.name} is passed over: {error}', stacklevel=2)
        if passed_over:
            raise ValueError(f'none of the checkpoints of {self.name!r} in {self.path} can be read; '
                             f'to begin anew, move them and {self.pointer_path.name} away or choose another --name')
        return None

    def checkpoints(self) -> list[Path]:
        """All checkpoints, the newest first."""
        pattern = re.compile(re.escape(Path(self.name).name) + r'_(\d{8,})\.pth')
        folder = self.checkpoint_path(0).parent
        found = [(int(match[1]), path) for path in folder.glob('*.pth') if (match := pattern.fullmatch(path.name))]
        return [path for _, path in sorted(found, reverse=True)]

    def _candidates(self) -> Iterator[Path]:
        first = self._pointed()
        if first is not None:
            yield first
        yield from (path for path in self.checkpoints() if path != first)

    def _pointed(self) -> Path | None:
        if not self.pointer_path.exists():
            return None
        try:
            return self.path / read_json(self.pointer_path.read_text(), str(self.pointer_path))['latest_checkpoint']
        except (ValueError, KeyError, TypeError, OSError) as error:
            warnings.warn(f'{self.pointer_path.name} is passed over: it names no checkpoint ({error})', stacklevel=4)
            return None


def read_training_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A checkpoint that training can go on from, of ours or of the original; nothing in it is run."""
    state = load_checkpoint(path)
    missing = [key for key in _NEEDED if key not in state] if isinstance(state, dict) else list(_NEEDED)
    if missing:
        raise ValueError(f'{path} lacks {", ".join(missing)}; training resumes from a checkpoint that train wrote '
                         '(weights alone are taken by --resume-inference)')
    return state


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: object = 'the checkpoint') -> None:
    """Puts weights into a model of the same shape; the first that does not fit is named, with both shapes."""
    fix = 'use the config it was trained with, or another --name to begin anew'
    for name, own in model.state_dict().items():
        if name in weights and weights[name].shape != own.shape:
            raise ValueError(f'{source} holds {name} of shape {list(weights[name].shape)}, '
                             f'and the model has {list(own.shape)}; {fix}')
    keys = model.load_state_dict(weights, strict=False)
    for odd, where in (keys.missing_keys, 'in the model and not in'), (keys.unexpected_keys, 'not in the model but in'):
        if odd:
            raise ValueError(f'{odd[0]} is {where} {source} ({len(odd)} such in all); {fix}')


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside DistributedDataParallel and torch.compile."""
    while True:
        inner = model.module if isinstance(model, DistributedDataParallel) else getattr(model, '_orig_mod', None)
        if inner is None:
            return model
        model = inner
