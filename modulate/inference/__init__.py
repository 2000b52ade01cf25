"""Samples to conditioned forwards; one question about one video."""
