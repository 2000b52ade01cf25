"""Answers of a host: their tokens, their likelihood after a prompt, and their generation."""
