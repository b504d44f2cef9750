"""The launcher that started this process."""

from __future__ import annotations

import os


def launcher_pid() -> int | None:
    """Return the number of this process's parent if it was started by torchrun, else None.

    The number becomes another one when the launcher dies. (accelerate launch is torchrun here.)
    """
    return os.getppid() if 'TORCHELASTIC_RUN_ID' in os.environ else None
