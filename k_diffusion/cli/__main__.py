"""Run `python -m k_diffusion.cli COMMAND`, the form that torchrun takes.

torchrun --nproc-per-node 2 -m k_diffusion.cli evaluate --checkpoint runs/demo
"""

import sys

from .entry import main

sys.exit(main())
