"""Parsers of recipes: YAML, recipes as trees, overrides from the command line."""

import functools
import json
import math
import random
from typing import Any

from tests.durability import mutations as mutate
from tests.durability.parsers.parser import Parser, decoded

SHORT_YAML = (
    b"name: r\nseed: 0\nhost: {name: qwen, params: {path: 'a'}}\n",
    b"a: &b {lr: 1.0e-4, s: [1, 2]}\nc: {<<: *b, lr: 2.0}\nd: *b\n",
    b"- 1\n- [2, ~, no]\n- 2020-01-01\n",
    b"x: |\n  text\n  more\ny: 'q'\n",
    b"# note\nn: 0x1f\nf: .inf\nt: !!str 5\n",
)


def check_yaml(result: Any, data: bytes) -> None:
    import yaml

    assert repr(result) == repr(yaml.safe_load(data.decode("utf-8", "surrogateescape")))


@functools.cache
def shipped() -> dict[str, Any]:
    from modulate.config.recipe import dump, load_recipe, recipe_paths

    return {
        name: json.loads(json.dumps(_plain(dump(load_recipe(name)))))
        for name in recipe_paths()
        if "/" not in name
    }


def _plain(text: str) -> Any:
    from modulate.utils.safe_load import parse_yaml

    return parse_yaml(text, "shipped")


CONTRADICTIONS = (
    {"lora": None},
    {"training": {"condition": "none"}},
    {"training": {"batch_by": "clip", "batch_size": 1}},
    {"training": {"batch_by": "clip"}, "injection": {"tokens": {"kind": "text"}}},
    {"training": {"condition": "blank"}, "injection": {"empty": "none"}},
    {"letters": "four", "answer": "word"},
    {"evaluation": {"inputs": {"blank": {"name": "gaze_text"}}}},
)
"""Overlays whose keys are each valid but contradict the recipe or each other."""


def recipe_seeds() -> list[bytes]:
    return [json.dumps(tree).encode() for tree in list(shipped().values())[:4]]


def mutate_recipe(data: bytes, rng: random.Random) -> bytes:
    """Mutate a tree as any JSON; one time in ten overlay keys that contradict each other."""
    from modulate.config.recipe import overlay

    if rng.random() < 0.9:
        return mutate.mutate_json(data, rng)
    try:
        tree = json.loads(data)
        return json.dumps(
            overlay(tree if isinstance(tree, dict) else {}, rng.choice(CONTRADICTIONS))
        ).encode()
    except (ValueError, RecursionError):
        return mutate.mutate_bytes(data, rng)


def parse_recipe(data: bytes) -> Any:
    from modulate.config.recipe import validate
    from modulate.errors import RecipeError

    try:
        tree = json.loads(data)
        json.dumps(tree, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise RecipeError("no tree") from error  # unreadable text belongs to the parser of YAML
    if not isinstance(tree, dict):
        raise RecipeError("no mapping")
    return validate(tree, "r.yaml")


def check_recipe(result: Any, data: bytes) -> None:
    from modulate.config.recipe import dump, validate

    if len(data) % 16 == 0:  # a sample: writing YAML takes ten times as long as everything else
        assert validate(_plain(dump(result)), "again") == result
    assert (
        result.training.stages and result.injection.layers and math.isfinite(result.injection.alpha)
    )


OVERRIDES = (
    b"seed=3",
    b"training.stages.0.epochs=2",
    b"encoder={name: coord_pe, params: {dim: 8}}",
    b"data.params.window=5.0",
    b"lora.rank=4",
    b"injection.layers=[1, 2]",
    b"evaluation.inputs.x={name: gaze_text}",
    b"training.stages.0.lr=1.0e-4",
    b"sampling.fps=[{up_to: 30, fps: 1}, {fps: 0.5}]",
    b"name=other",
)


def parse_override(data: bytes) -> Any:
    from modulate.config.recipe import override, validate

    tree = json.loads(_tiny())
    for line in data.decode("utf-8", "surrogateescape").split("\n")[:3]:
        override(tree, line)
    return validate(tree, "r.yaml")


@functools.cache
def _tiny() -> str:
    return json.dumps(shipped()["gazeqwen_tiny"])


JSON_FUNCTIONS = (
    "read_json",
    "parse_json",
    "_distinct",
    "_no_number",
    "_finite",
    "_short",
    "_deeper",
    "read_lines",
    "_refuse_device",
)
"""Functions beside the parser of YAML that have nothing to do with it."""


def parsers() -> list[Parser]:
    """Return the parsers of recipes."""
    from modulate.utils.safe_load import parse_yaml, read_yaml

    yaml = Parser(
        name="yaml",
        what="YAML",
        seeds=lambda: list(SHORT_YAML),
        parse=lambda data: parse_yaml(decoded(data), "r.yaml"),
        check=check_yaml,
        modules=("modulate.utils.safe_load",),
        read=read_yaml,
        suffix=".yaml",
        never=("read_limited", *JSON_FUNCTIONS),
    )
    recipe = Parser(
        name="recipe",
        what="recipes, as trees",
        seeds=recipe_seeds,
        parse=parse_recipe,
        check=check_recipe,
        modules=("modulate.config.recipe",),
        mutation=mutate_recipe,
        only=("validate", "explain", "_short", "_known_keys", "_consistent", "choices"),
    )
    override = Parser(
        name="override",
        what="overrides of a recipe",
        seeds=lambda: list(OVERRIDES),
        parse=parse_override,
        check=check_recipe,
        modules=("modulate.config.recipe",),
        only=("override", "_refuse_unknown", "validate", "explain", "_short", "_known_keys"),
    )
    return [yaml, recipe, override]
