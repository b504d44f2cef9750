"""A quick check that the Hugging Face Hub answers; its own libraries try for half a minute."""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Seconds to wait for an answer of the hub.
PATIENCE = 5.0
_reached = threading.Event()


def hub_fault(name: str | os.PathLike[str]) -> str | None:
    """Return the reason why a model cannot be downloaded; None if it may be possible.

    None also for a folder, which needs no hub. Once the hub has answered it is not contacted again.

    Args:
        name: The name of the model, or a folder.
    """
    if Path(name).is_dir() or _reached.is_set() or not importlib.util.find_spec('huggingface_hub'):
        return None
    faults: list[str] = []
    thread = threading.Thread(target=_ask_hub, args=(faults,), daemon=True)
    thread.start()
    thread.join(PATIENCE + 1)  # (looking up its address has no limit of its own)
    if _reached.is_set():
        return None
    return faults[0] if faults else f'no answer within {PATIENCE:.0f} s'


@contextmanager
def quick_hub(name: str | os.PathLike[str]) -> Iterator[None]:
    """Let the libraries of the hub work offline if the hub does not answer.

    For loaders without an argument local_files_only.

    Args:
        name: The name of the model, or a folder.
    """
    if hub_fault(name) is None:
        yield
        return
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _ask_hub(faults: list[str]) -> None:
    """Contact the hub by the session of its library, which handles proxies and the offline mode."""
    try:
        from huggingface_hub import constants
        from huggingface_hub.utils import get_session

        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
        _reached.set()
    except Exception as error:  # of whichever library it sends by
        faults.append(' '.join(str(error).split())[:120] or type(error).__name__)
