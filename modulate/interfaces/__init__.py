"""The interfaces that plugins implement, and the values that they exchange."""
