"""Likelihood and inversion by the probability flow."""
