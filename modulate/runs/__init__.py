"""A run's folder: recipe, checkpoints, records, imported weights."""
