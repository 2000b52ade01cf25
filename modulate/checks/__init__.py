"""What can be known before a run, and what can be measured before it: dead layers, coverage,
settings without effect, costs.
"""
