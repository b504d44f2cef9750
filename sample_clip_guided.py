#!/usr/bin/env python3
"""The door of the original to `k-diffusion clip`, with its flags and defaults."""

import sys

from k_diffusion.cli.clip import main

if __name__ == '__main__':
    sys.exit(main(prog='sample_clip_guided.py', prefix='out', steps=100))
