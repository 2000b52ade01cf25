"""Scoring under every control: answers as they come, figures from them, paired tests, intervals."""
