"""Reading the pictures of a batch: from memory, one after another, or by worker processes."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.images import raw_bytes
from .datasets import Dataset, Images
from .pictures import UnreadablePicture

#: How many batches each worker has waiting.
_AHEAD = 2
#: Seconds of one wait for a worker; the time while the program is stopped (Ctrl-Z) counts as one.
_TURN = 1.0
#: How many pictures in a row may be unreadable before that is an error.
_ATTEMPTS = 100


class Batch(NamedTuple):
    """Pictures [B, C, H, W], uint8 or float32, their classes [B], their numbers [B], what could
    not be read (name, reason), texts.
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
    start_method: str,
    timeout: float | None = None,
) -> Generator[Batch, None, None]:
    """Yield the batches of a stream of indices [B], in order.

    Workers serve a data set that is still to be decoded; another needs none.

    Args:
        dataset: The pictures.
        indices: Which of them, batch by batch.
        workers: How many processes read; 0: this one.
        start_method: How they start.
        timeout: Seconds without a batch after which they count as hanging; None: never.

    Raises:
        ChildProcessError: A worker died or hangs.
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
    """Return items as a batch; in place of one that cannot be read stands the next that can."""
    skipped: list[tuple[str, str]] = []
    read, items = zip(*(_first_readable(dataset, index, skipped) for index in indices))
    return stack_items(items, read, skipped)


def stack_items(
    items: Sequence[dict[str, Any]], numbers: Sequence[int], skipped: list[tuple[str, str]]
) -> Batch:
    """Return items that were read, with their numbers and what was skipped meanwhile, as a
    batch.
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
    """Return the number of an item, or of the next that can be read in place of one that cannot."""
    return _first_readable(dataset, index, [])[0]


def _first_readable(
    dataset: Dataset, index: int, skipped: list[tuple[str, str]]
) -> tuple[int, dict[str, Any]]:
    """The item with its number, or in place of one that cannot be read the next that can: the
    same whoever reads it.
    """
    for _ in range(min(_ATTEMPTS, len(dataset))):
        try:
            return index, dataset[index]
        except UnreadablePicture as error:
            skipped.append((dataset.name(index), str(error)))
        index = dataset.next_index(index)
    name, reason = skipped[-1]
    raise ValueError(
        f'{dataset.source} has many pictures in a row that cannot be read (the last, {name}: '
        f'{reason}); are they pictures?'
    )


def _by_workers(
    dataset: Dataset,
    indices: Iterator[Tensor],
    workers: int,
    start_method: str,
    timeout: float | None,
) -> Generator[Batch, None, None]:
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context(start_method), _start_worker, (dataset,)
    )
    waiting: deque[tuple[list[int], Future[Any]]] = deque()
    # kept, since a broken pool forgets them
    processes = pool._processes  # type: ignore[attr-defined, unused-ignore]
    try:
        for index in indices:
            waiting.append((index.tolist(), pool.submit(_work, index.tolist())))
            if len(waiting) > _AHEAD * workers:
                first, future = waiting.popleft()
                if not _is_done_within(future, timeout):
                    _kill(processes)
                    raise ChildProcessError(_hang_message(dataset, first, timeout))
                pictures, dtype, labels, read, skipped, texts = future.result()
                images = torch.frombuffer(pictures, dtype=dtype).view(-1, *dataset.image_shape)
                yield Batch(
                    images,
                    None if labels is None else torch.tensor(labels),
                    torch.tensor(read),
                    skipped,
                    texts,
                )
    except BrokenProcessPool:
        raise ChildProcessError(
            f'a process that reads {dataset.source} died ({_how_it_died(processes)}); '
            'pass fewer num_workers=..., or 0, and start again: training resumes where it was'
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


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
    """End workers that do not answer, or Python would wait for them when it ends."""
    for process in list((processes or {}).values()):
        process.kill()


def _hang_message(dataset: Dataset, indices: list[int], timeout: float | None) -> str:
    names = ', '.join(dataset.name(index) for index in indices[:3])
    return (
        f'the processes that read {dataset.source} gave no batch for {timeout:g} s (it begins '
        f'with {names}); mend what hangs or pass a greater worker_timeout=..., and start again: '
        'training '
        'resumes where it was'
    )


def _how_it_died(processes: Any) -> str:
    """The first of the processes that did not end by itself: its number, and the signal or
    status it ended with.
    """
    for process in list((processes or {}).values()):
        code = process.exitcode
        if code not in (None, 0, -signal.SIGTERM):  # (by SIGTERM the pool ends the others)
            how = f'signal {signal.Signals(-code).name}' if code < 0 else f'exit status {code}'
            return f'process {process.pid}, by {how}' + (': out of memory?' if code == -9 else '')
    return 'killed, or out of memory'


_dataset: Dataset | None = None


def _start_worker(dataset: Dataset) -> None:
    """In a worker: one thread (its fellows have the other cores), interrupts left to the parent,
    and an end with the parent.
    """
    global _dataset
    _dataset = dataset
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
    """In a worker: a batch as plain bytes (shared memory is scarce in containers, and must be
    cleaned up after).
    """
    if _dataset is None:
        raise RuntimeError('a worker was not started; this is an error of the program')
    images, labels, read, skipped, texts = read_items(_dataset, indices)
    data = raw_bytes(images.contiguous().view(torch.uint8))
    return (
        data,
        images.dtype,
        None if labels is None else labels.tolist(),
        read.tolist(),
        skipped,
        texts,
    )
