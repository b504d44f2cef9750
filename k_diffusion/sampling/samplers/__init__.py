"""The samplers, a file for each family."""
