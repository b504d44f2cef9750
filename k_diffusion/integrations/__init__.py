"""Doors into programs that generate pictures. Each is imported where it is used, and imports its host itself."""
