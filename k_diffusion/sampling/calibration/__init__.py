"""Solvers fitted to one model: fitting, the sampler that comes of it, and its files."""
