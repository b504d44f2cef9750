#!/usr/bin/env python3
"""The door of the original to `k-diffusion convert`, with its flags and defaults."""

import sys

from k_diffusion.cli.convert import main

if __name__ == '__main__':
    sys.exit(main(prog='convert_for_inference.py'))
