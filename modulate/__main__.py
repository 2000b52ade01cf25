"""``python -m modulate``: the command line."""

from modulate.cli import main

main()
