"""Foundations: tensors, modules, randomness, images, registries and files.

Nothing here is specific to diffusion.
"""
