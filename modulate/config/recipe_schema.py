"""The JSON Schema of recipes, for editors. Imports no torch."""

import json
from typing import Any

from modulate.config.recipe import Recipe


def schema() -> dict[str, Any]:
    """Return the JSON Schema of recipes, for editors.

    A recipe that extends another may leave any key out, so the schema is one of two: the whole
    recipe, or ``extends`` with every key optional.
    """
    whole = Recipe.model_json_schema()
    definitions = whole.pop("$defs")
    # A second copy of all definitions without required keys, under names of their own.
    copied = json.dumps({"": whole, **definitions}).replace('"#/$defs/', '"#/$defs/part of ')
    optional = json.loads(copied)
    for part in optional.values():
        part.pop("required", None)
    extending = optional.pop("")
    extends = {
        "type": "string",
        "description": (
            "name of a shipped recipe, or a file in the same folder; this recipe's keys are laid"
            " over it"
        ),
    }
    extending["properties"] = {"extends": extends, **extending["properties"]}
    extending["required"] = ["extends"]
    return {
        "title": whole["title"],
        "anyOf": [whole, extending],
        "$defs": definitions | {f"part of {name}": part for name, part in optional.items()},
    }
