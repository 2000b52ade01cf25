"""Many recipes from one: their runs, side by side on the devices there are, and what came of them."""
