"""Checks and measurements before a run: dead layers, signal coverage, costs."""
