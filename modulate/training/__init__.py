"""Stages, optimizer steps, gradient synchronization, resumption."""
