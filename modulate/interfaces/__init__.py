"""What plugins implement and exchange: signals, grids, frames, encoders, backbones, modulators,
writers, data sets.
"""
