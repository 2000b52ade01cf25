"""Cost of modulate relative to the bare host and to the released code; run by `make bench`."""
