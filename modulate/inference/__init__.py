"""From samples to conditioned forwards, for training, evaluation and single questions."""
