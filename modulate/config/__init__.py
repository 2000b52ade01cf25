"""Recipes: typed YAML files that name every component of a run. Imports no torch."""
