#!/usr/bin/env python3
"""The door of the original to `k-diffusion sample`, with its flags and defaults."""

import sys

from k_diffusion.cli.sample import main

if __name__ == '__main__':
    sys.exit(main(prog='sample.py', sampler='lms', steps=50, prefix='out'))
