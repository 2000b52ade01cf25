"""What modulate costs beside the bare host, and beside the released way of working: `python -m
benchmarks.speed`, or `make bench`.
"""
