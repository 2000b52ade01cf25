"""From videos and data sets to frames at true times and cached backbone features."""
