"""The launcher that started this process."""

from __future__ import annotations

import os


def launcher_pid() -> int | None:
    """Return the parent's number if this process was started by torchrun, else None.

    It changes when the launcher dies. (accelerate launch uses torchrun here.)
    """
    return os.getppid() if 'TORCHELASTIC_RUN_ID' in os.environ else None
