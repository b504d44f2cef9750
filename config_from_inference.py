#!/usr/bin/env python3
"""The door of the original to `k-diffusion config`, with its flags and defaults."""

import sys

from k_diffusion.cli.config import main

if __name__ == '__main__':
    sys.exit(main(prog='config_from_inference.py'))
