"""A host's answers: their tokens, likelihood after a prompt, and generation."""
