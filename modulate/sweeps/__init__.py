"""Many recipes from one: planned, run side by side, and compared."""
