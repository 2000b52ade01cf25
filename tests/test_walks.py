"""The walks through the code name files and definitions that exist, and never go back."""

import ast
import re

import pytest

from tests.paths import ROOT

WALKS = sorted((ROOT / "docs" / "explanation").glob("walk-*.md"))


def stops(page):
    """(file, names defined in it) of each numbered stop."""
    for line in re.findall(r"^\d+\. (.+)$", page.read_text(), re.M):
        file, names = re.match(r"\*\*.+?\*\* `(\S+?)`, ((?:`\S+?`(?: and )?)+)", line).groups()
        yield file, re.findall(r"`(\S+?)`", names)


def definitions(path):
    """Functions and classes of a file, methods as `Class.method`."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
            yield from (f"{node.name}.{method.name}" for method in methods)


@pytest.mark.parametrize("page", WALKS, ids=lambda page: page.stem)
def test_each_stop_of_a_walk_exists(page):
    missing = [
        (file, name)
        for file, names in stops(page)
        for name in names
        if name not in set(definitions(ROOT / file))
    ]
    assert missing == []


@pytest.mark.parametrize("page", WALKS, ids=lambda page: page.stem)
def test_a_walk_is_short_and_visits_each_file_once(page):
    files = [file for file, _ in stops(page)]
    assert 5 <= len(files) <= 10
    assert len(set(files)) == len(files)


def test_there_are_three_walks():
    assert len(WALKS) == 3
