"""Tasks: one module for each command, with its settings and one function."""
