"""From samples to conditioned forwards; one question about one video."""
