"""Small faults put into the core on purpose, to see whether the quick tests notice: `make mutants`."""
