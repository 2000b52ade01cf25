"""The layout that pages show is what docstrings say."""

import pytest

from modulate.cli import layout
from tests.paths import ROOT


def test_the_tree_names_each_package_plugin_and_entry():
    shown = {line.split()[0] for line in layout.tree(ROOT).splitlines()[1:-1]}
    packages = {
        path.name + "/" for path in (ROOT / "modulate").iterdir() if (path / "__init__.py").exists()
    }
    plugins = {path.parent.name + "/" for path in (ROOT / "plugins").glob("modulate_*/__init__.py")}
    assert packages | plugins | {"modulate/", "plugins/", "tests/", "docs/"} <= shown


def test_the_table_names_each_module():
    modules = {path.stem for path in (ROOT / "modulate").rglob("*.py")} - {"__init__", "__main__"}
    assert [
        name
        for name in modules
        if f"`{name}`" not in layout.table() and f"/{name}`" not in layout.table()
    ] == []


def test_text_goes_between_the_markers_and_nowhere_else():
    page = "above\n<!-- tree -->\nold\n<!-- /tree -->\nbelow\n"
    assert layout.filled(page, "tree", "new") == page.replace("old", "new")
    with pytest.raises(ValueError, match="has no <!-- table -->"):
        layout.filled(page, "table", "new")
