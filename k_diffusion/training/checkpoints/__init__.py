"""Checkpoints of a run: the folder they lie in, what is on record of them, reading and pieces."""
