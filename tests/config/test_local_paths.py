"""Relative paths of a recipe's components, and where they led when a run began."""

from pathlib import Path
from typing import Annotated, Literal

import pytest

from modulate.config.local_paths import local_paths, relocated
from modulate.config.recipe import load_recipe
from modulate.interfaces.params import LocalPath, Params
from modulate.plugins import registry
from tests.paths import SMALL


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def small(*changes):
    return load_recipe(SMALL, changes)


def test_paths_from_the_working_directory_are_found_by_key(here):
    (here / "hosts" / "small").mkdir(parents=True)
    recipe = small("host.params.path=hosts/small", "data.params.root=world")
    assert local_paths(recipe) == {
        "host.params.path": str(here / "hosts" / "small"),
        "data.params.root": str(here / "world"),
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("host.params.path", "someone/model"),
        ("host.params.path", "package:modulate_tabletop/host"),
        ("host.params.path", "~/model"),
        ("data.params.root", "/data/world"),
    ],
)
def test_hub_ids_packages_and_absolute_paths_are_none(here, key, value):
    assert key not in local_paths(small(f"{key}={value}"))


def test_words_are_no_paths_even_where_a_file_has_their_name(here):
    (here / "pretrained").touch()
    (here / "weights.safetensors").touch()
    spec = "backbone={name: dinov2, params: {weights: %s}}"
    assert "backbone.params.weights" not in local_paths(small(spec % "pretrained"))
    found = local_paths(small(spec % "weights.safetensors"))
    assert found["backbone.params.weights"] == str(here / "weights.safetensors")


def test_every_path_of_a_component_that_ships_is_marked_or_lies_in_its_root():
    """A new parameter of type Path is marked, or named here with its reason."""
    within_root = {
        "streamgaze": ["videos", "fixations", "metadata", "groups"],
        "tabletop": ["fixations"],
    }
    unmarked = {}
    for kind in ("host", "backbone", "signal_encoder", "modulator", "dataset", "input"):
        for name, component in registry().loadable(kind):
            fields = component.Params.model_fields
            paths = [field for field, info in fields.items() if "Path" in str(info.annotation)]
            left = [field for field in paths if field not in component.Params.local_paths()]
            if left:
                unmarked[name] = left
    assert unmarked == within_root


def test_a_recipe_is_relocated_to_what_was_recorded(here, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "host").mkdir()
    recipe = small("host.params.path=host", "data.params.root=world")
    recorded = {
        "host.params.path": str(elsewhere / "host"),
        "data.params.root": str(elsewhere / "world"),
    }
    moved = relocated(recipe, recorded)
    assert moved.host.params["path"] == str(elsewhere / "host")
    assert moved.data.params["root"] == str(elsewhere / "world")
    assert moved.model_copy(update={"host": recipe.host, "data": recipe.data}) == recipe
    # Gone there, and here now.
    (here / "world").mkdir()
    assert relocated(recipe, recorded).data == recipe.data
    # What existed then goes first.
    (here / "host").mkdir()
    assert relocated(recipe, recorded).host == moved.host
    for unchanged in ({}, {"host.params.path": str(here / "host")}):
        assert relocated(recipe, unchanged) == recipe
    absolute = small("host.params.path=/hosts/small", "data.params.root=/world")
    assert relocated(absolute, recorded) == absolute


def test_parameters_are_marked_by_their_annotation():
    class Marked(Params):
        file: Annotated[Path, LocalPath()]
        weights: Annotated[str | Literal["none"], LocalPath(("none",))] = "none"
        name: str = ""
        other: Path = Path()

    assert Marked.local_paths() == {"file": LocalPath(), "weights": LocalPath(("none",))}
