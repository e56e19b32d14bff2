"""Sweeps: many runs asked for at once."""
