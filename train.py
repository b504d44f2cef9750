#!/usr/bin/env python3
"""The door of the original to `k-diffusion train`, with its flags and defaults."""

import sys

from k_diffusion.cli.train import main

if __name__ == '__main__':
    sys.exit(main(prog='train.py'))
