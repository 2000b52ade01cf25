"""Answers under every control, intervals, and paired tests."""
