"""What plugins implement and exchange: signals, grids, frames, components."""
