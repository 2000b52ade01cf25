"""Recipes: typed YAML files that name every component of a run; torch-free."""
