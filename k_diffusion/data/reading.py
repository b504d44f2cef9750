"""Reading the images of a batch: from memory, one after another, or by worker processes."""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.images import raw_bytes
from .datasets import Dataset, Images
from .pictures import UnreadablePicture

#: Number of batches waiting at each worker.
_AHEAD = 2
#: Seconds of one wait for a worker; time while the program is stopped (Ctrl-Z) counts as one wait.
_TURN = 1.0
#: Largest number of unreadable images in a row.
_ATTEMPTS = 100


class Batch(NamedTuple):
    """A batch that was read.

    Attributes:
        images: [B, C, H, W], uint8 or float32.
        labels: Their classes, [B].
        numbers: Their indices, [B].
        skipped: (name, reason) of items that could not be read.
        texts: Their texts.
    """

    images: Tensor
    labels: Tensor | None
    numbers: Tensor
    skipped: list[tuple[str, str]]
    texts: list[str] | None = None


def read(
    dataset: Dataset,
    indices: Iterator[Tensor],
    workers: int,
    start_method: str | None,
    timeout: float | None = None,
) -> Generator[Batch, None, None]:
    """Yield the batches of a stream of indices [B], in order.

    Workers are used for a data set that is not decoded yet; others do not need them.

    Args:
        dataset: The data set.
        indices: The indices of each batch.
        workers: Number of processes; 0 for this process.
        start_method: Their start method; None for the default.
        timeout: Seconds without a batch after which they count as hanging; None for no limit.

    Raises:
        ChildProcessError: If a worker died or hangs.
    """
    if isinstance(dataset, Images):
        return (_from_memory(dataset, index) for index in indices)
    if workers == 0:
        return (read_items(dataset, index.tolist()) for index in indices)
    return _by_workers(dataset, indices, workers, start_method, timeout)


def _from_memory(dataset: Images, index: Tensor) -> Batch:
    return Batch(
        dataset.images[index], None if dataset.labels is None else dataset.labels[index], index, []
    )


def read_items(dataset: Dataset, indices: Sequence[int]) -> Batch:
    """Return items as a batch; an unreadable one is replaced by the next readable one.

    Args:
        dataset: The data set.
        indices: The indices of the items.
    """
    skipped: list[tuple[str, str]] = []
    read_indices, items = zip(*(_first_readable(dataset, index, skipped) for index in indices))
    return stack_items(items, read_indices, skipped)


def stack_items(
    items: Sequence[dict[str, Any]], numbers: Sequence[int], skipped: list[tuple[str, str]]
) -> Batch:
    """Stack items into a batch.

    Args:
        items: The items that were read.
        numbers: Their numbers in the data set.
        skipped: (source, reason) of the items skipped meanwhile.
    """
    labels = (
        torch.tensor([item['class_cond'] for item in items]) if 'class_cond' in items[0] else None
    )
    texts = [item['text'] for item in items] if 'text' in items[0] else None
    return Batch(
        torch.stack([item['image'] for item in items]),
        labels,
        torch.tensor(numbers),
        skipped,
        texts,
    )


def readable_index(dataset: Dataset, index: int) -> int:
    """Return the index of an item, or of the next readable one.

    Args:
        dataset: The data set.
        index: The index of the item.
    """
    return _first_readable(dataset, index, [])[0]


def _first_readable(
    dataset: Dataset, index: int, skipped: list[tuple[str, str]]
) -> tuple[int, dict[str, Any]]:
    """Return an item with its index, or the next readable one, the same for every process."""
    for _ in range(min(_ATTEMPTS, len(dataset))):
        try:
            return index, dataset[index]
        except UnreadablePicture as error:
            skipped.append((dataset.name(index), str(error)))
        index = dataset.next_index(index)
    name, reason = skipped[-1]
    raise ValueError(
        f'{dataset.source} has many images in a row that cannot be read (the last, {name}: '
        f'{reason}); check that they are images'
    )


def _by_workers(
    dataset: Dataset,
    indices: Iterator[Tensor],
    workers: int,
    start_method: str | None,
    timeout: float | None,
) -> Generator[Batch, None, None]:
    pool = ProcessPoolExecutor(workers, _context(start_method), _start_worker, (dataset,))
    waiting: deque[tuple[list[int], Future[Any]]] = deque()
    needs_script = _is_of_script(dataset)
    # kept, since a broken pool forgets them
    processes = pool._processes  # type: ignore[attr-defined, unused-ignore]
    try:
        for index in indices:
            with _hidden_script(not needs_script):
                waiting.append((index.tolist(), pool.submit(_work, index.tolist())))
            if len(waiting) > _AHEAD * workers:
                first, future = waiting.popleft()
                if not _is_done_within(future, timeout):
                    _kill(processes)
                    raise ChildProcessError(_hang_message(dataset, first, timeout))
                pictures, dtype, labels, read_indices, skipped, texts = future.result()
                images = torch.frombuffer(pictures, dtype=dtype).view(-1, *dataset.image_shape)
                yield Batch(
                    images,
                    None if labels is None else torch.tensor(labels),
                    torch.tensor(read_indices),
                    skipped,
                    texts,
                )
    except BrokenProcessPool:
        raise ChildProcessError(
            f'a process that reads {dataset.source} died ({_how_it_died(processes)}); '
            'pass fewer num_workers=..., or 0, and start again: training resumes'
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _context(start_method: str | None) -> Any:
    """Return the way processes start; those of a fork server share the memory of torch."""
    method = start_method or ('forkserver' if sys.platform == 'linux' else 'spawn')
    context = multiprocessing.get_context(method)
    if method == 'forkserver':
        context.set_forkserver_preload([__name__])
    return context


@contextmanager
def _hidden_script(hide: bool) -> Iterator[None]:
    """Keep processes that start meanwhile from running the script of the program again.

    Python lets them, so that they know what it defines; a script that calls `train` without the
    guard `if __name__ == '__main__':` would train once more in each of them.
    """
    attributes = vars(sys.modules['__main__'])
    hidden = ('__spec__', '__file__') if hide else ()
    saved: dict[str, Any] = {name: attributes[name] for name in hidden if name in attributes}
    attributes.update(dict.fromkeys(saved))
    try:
        yield
    finally:
        attributes.update(saved)


class _Search(pickle.Pickler):
    """Finds whether an object refers to classes or functions of the program's script."""

    of_script = False

    def persistent_id(self, value: Any) -> str | None:
        """Note a class or function; tensors are not looked into."""
        if isinstance(value, Tensor):
            return 'tensor'
        if isinstance(value, type) or callable(value):
            self.of_script |= getattr(value, '__module__', None) == '__main__'
        return None


class _Nowhere:
    def write(self, data: bytes) -> None:
        """Drop what is written."""


def _is_of_script(dataset: Dataset) -> bool:
    search = _Search(_Nowhere())
    try:
        search.dump(dataset)
    except Exception:  # reported when the data set is sent to a worker
        return True
    return search.of_script


def _is_done_within(future: Future[Any], timeout: float | None) -> bool:
    if timeout is None:
        wait([future])
    else:
        turns = max(1, math.ceil(timeout / _TURN))
        for _ in range(turns):
            if wait([future], timeout / turns).done:
                break
    return future.done()


def _kill(processes: Any) -> None:
    """End workers that do not answer; Python would wait for them at exit."""
    for process in list((processes or {}).values()):
        process.kill()


def _hang_message(dataset: Dataset, indices: list[int], timeout: float | None) -> str:
    names = ', '.join(dataset.name(index) for index in indices[:3])
    return (
        f'the processes that read {dataset.source} returned no batch for {timeout:g} s (it '
        f'starts with {names}). Fix the cause or pass a larger worker_timeout=..., and start '
        'again: training resumes'
    )


def _how_it_died(processes: Any) -> str:
    """Return the first process that was killed, with the signal or exit status."""
    for process in list((processes or {}).values()):
        code = process.exitcode
        if code not in (None, 0, -signal.SIGTERM):  # the pool ends the others by SIGTERM
            how = f'signal {signal.Signals(-code).name}' if code < 0 else f'exit status {code}'
            return f'process {process.pid}, by {how}' + (': out of memory?' if code == -9 else '')
    return 'killed, or out of memory'


_dataset: Dataset | None = None


def _start_worker(dataset: Dataset) -> None:
    """Set up a worker: one thread, interrupts left to the parent, and an end with the parent."""
    global _dataset
    _dataset = dataset
    gc.freeze()  # a collection would write to the memory that workers share
    dataset.reopen()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _work(indices: list[int]) -> tuple[Any, ...]:
    """Read a batch in a worker, and return it as plain bytes.

    Shared memory is scarce in containers and must be cleaned up.
    """
    if _dataset is None:
        raise RuntimeError('a worker was not started; this is a bug')
    images, labels, read_indices, skipped, texts = read_items(_dataset, indices)
    data = raw_bytes(images.contiguous().view(torch.uint8))
    return (
        data,
        images.dtype,
        None if labels is None else labels.tolist(),
        read_indices.tolist(),
        skipped,
        texts,
    )
