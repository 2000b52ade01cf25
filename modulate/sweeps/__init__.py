"""Sweeps: many runs of one recipe, changed along several axes, side by side, and compared."""
