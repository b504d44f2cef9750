"""python -m k_diffusion.cli COMMAND ...: what torchrun takes (torchrun --nproc-per-node 2 -m k_diffusion.cli evaluate ...)."""
import sys

from .entry import main

sys.exit(main())
