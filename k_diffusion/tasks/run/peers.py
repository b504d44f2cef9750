"""What a process says when another process of its run is gone."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ...training import Trainer

_WORDS = ('gloo', 'nccl', 'connection closed', 'connection reset', 'process group')


@contextmanager
def told_of_peers(trainer: Trainer) -> Iterator[None]:
    """Turns the error of a broken exchange between processes into a sentence."""
    try:
        yield
    except RuntimeError as error:
        if trainer.accelerator.num_processes == 1 or not any(word in str(error).lower() for word in _WORDS):
            raise
        saved = 'nothing was saved before' if trainer.last_checkpoint is None else f'it goes on from {trainer.last_checkpoint}'
        raise ChildProcessError(f'process {trainer.accelerator.process_index} lost another process of the run, which died or was cut off '
                                f"(the launcher's summary below names it); run the same command again: {saved}") from error
