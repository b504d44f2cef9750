"""Solvers fitted to one model for one number of model calls."""
