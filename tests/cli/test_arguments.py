"""Shared arguments: each has a help text and serves at least two commands."""

from typing import get_args, get_origin

import typer

from modulate.cli import arguments
from tests.paths import ROOT

SHARED = {
    name: value
    for name, value in vars(arguments).items()
    if get_origin(value) and name[0].isupper()
}
SHARED = {name: value for name, value in SHARED.items() if name not in {"Annotated", "Path"}}


def test_each_is_documented():
    assert SHARED
    for name, annotation in SHARED.items():
        info = get_args(annotation)[-1]
        assert isinstance(info, typer.models.ParameterInfo), name
        assert info.help and info.help.endswith("."), name


def test_each_serves_at_least_two_commands():
    sources = [path.read_text() for path in (ROOT / "modulate" / "cli" / "commands").glob("*.py")]
    for name in SHARED:
        users = [text for text in sources if f"{name}," in text or f": {name}" in text]
        assert len(users) >= 2, name
