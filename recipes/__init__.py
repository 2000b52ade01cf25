"""The recipes that ship with modulate, as package data."""
