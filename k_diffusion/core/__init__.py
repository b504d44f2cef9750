"""The ground everything stands on: tensors, modules, randomness, pictures, names and files.

Knows no diffusion.
"""
