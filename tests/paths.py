"""Where the repository and the files that tests read are."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
FIXTURES = Path(__file__).parent / "fixtures"
SMALL = str(FIXTURES / "small.yaml")
