"""Findings of pydantic as lines that name key, problem and value."""

from pathlib import Path

import pytest
import yaml

from modulate.config import recipe as recipes
from modulate.errors import RecipeError
from tests.paths import SMALL


def test_of_many_problems_the_first_are_listed_and_the_rest_is_counted():
    tree = yaml.safe_load(Path(SMALL).read_text()) | {f"nose{index:02}": 1 for index in range(15)}
    with pytest.raises(RecipeError) as found:
        recipes.validate(tree, "mine")
    lines = str(found.value).splitlines()
    assert len(lines) == 14
    assert all("unknown key" in line for line in lines[1:13])
    assert lines[13] == "  … and 3 more."
