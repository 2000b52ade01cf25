"""What is known, or measured, before a run: dead layers, coverage, costs."""
