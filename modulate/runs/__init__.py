"""A run's folder: recipe, checkpoints, records, and runs made from weights trained elsewhere."""
