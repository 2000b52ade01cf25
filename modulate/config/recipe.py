"""Recipes: typed YAML files that name host, backbone, signal, encoder, modulator, injection, data
and training.
"""

import importlib.resources
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from modulate import plugins
from modulate.config.injection import Injection, LoraParams
from modulate.config.renamed_keys import new_name, translate
from modulate.config.sections import BUILT_IN, Evaluation, Features, Sampling, Section, Training
from modulate.errors import MissingFileError, RecipeError, near_matches
from modulate.interfaces.multi_signal import controls_of
from modulate.interfaces.params import ComponentSpec
from modulate.utils.safe_load import YAML_DEPTH, parse_yaml, read_yaml

RECIPES = "modulate_recipes"

SWEEPS = "ablations/"
"""Folder of the shipped sweeps, beside the recipes that they change."""

MAX_EXTENDS = 8
"""Most recipes that one may stand on, each extending the next."""

MAX_FINDINGS = 12
"""Most problems of one recipe that a message lists."""


#: Kind of the component that each key of a recipe names.
KIND_OF = {
    "host": "host",
    "backbone": "backbone",
    "encoder": "signal_encoder",
    "modulator": "modulator",
    "data": "dataset",
}


class Recipe(Section):
    """Everything that a run needs to be repeated."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$",
        max_length=100,
        description="also the run's folder: runs/<name>",
    )
    seed: int = Field(0, description="of initialization, order and augmentation")
    host: ComponentSpec = Field(description="frozen multimodal LLM that answers")
    backbone: ComponentSpec = Field(
        description="frozen vision encoder of the raw frames, which the modulator sees them through"
    )
    signal: str = Field(
        "gaze",
        description="kind of side signal; `a+b` for several, whose encoder reads them together",
    )
    encoder: ComponentSpec = Field(
        description="signal encoder: what a signal means for each visual token"
    )
    modulator: ComponentSpec = Field(description="makes residuals of signal and frame features")
    injection: Injection = Field(description="where in the host residuals are added")
    lora: LoraParams | None = Field(
        None, description="low-rank adaptation that the modulation brings along; null: none"
    )
    data: ComponentSpec = Field(
        description="data set: questions about clips, their signals and their splits"
    )
    features: Features = Field(
        Features(), description="how the backbone's features are kept on disk"
    )
    sampling: Sampling = Field(Sampling(), description="which frames of a clip are seen")
    answer: Literal["letter", "word"] = Field(
        "letter",
        description="score the options' letters, or the words themselves (each must be one token)",
    )
    letters: Literal["offered", "four"] = Field(
        "offered",
        description=(
            "offered: choose among the letters of the question's options; four: among A to D also"
            " where fewer are offered, as GazeQwen's code does"
        ),
    )
    training: Training = Field(description="how the modulation is trained")
    evaluation: Evaluation = Field(
        Evaluation(), description="how answers are scored, and under which controls"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        asks = {part for stage in self.training.stages for part in stage.train}
        if "lora" in asks and self.lora is None:
            raise ValueError("a stage trains lora, but the recipe has no `lora:` section")
        if self.training.condition == "none" and asks != {"lora"}:
            raise ValueError(
                "condition `none` gives the modulator no gradient: every stage must train [lora]"
                " only"
            )
        if self.training.batch_by != "any" and self.training.batch_size == 1:
            raise ValueError(
                f"`training.batch_by: {self.training.batch_by}` has no effect with batch_size 1"
            )
        if self.training.batch_by == "clip" and self.injection.tokens.kind != "visual":
            raise ValueError(
                "`training.batch_by: clip` goes over a clip once, before the questions part, and so"
                " can write on visual tokens only"
            )
        if self.training.batch_by == "clip" and self.training.gradient_checkpointing:
            raise ValueError(
                "`training.batch_by: clip` keeps what the layers made of the clip in a cache, which"
                " layers that are recomputed cannot fill: choose one"
            )
        if self.evaluation.batch_by == "clip" and self.evaluation.batch_size == 1:
            raise ValueError("`evaluation.batch_by: clip` has no effect with batch_size 1")
        if self.evaluation.batch_by == "clip" and self.injection.tokens.kind != "visual":
            raise ValueError(
                "`evaluation.batch_by: clip` goes over a clip once, before the questions part, and"
                " so can write on visual tokens only"
            )
        if (
            self.training.condition == "blank"
            and self.injection.empty == "none"
            and "modulator" in asks
        ):
            raise ValueError(
                "condition `blank` with `injection.empty: none` gives the modulator no gradient:"
                " train [lora] only, or let empty signals have a residual"
            )
        if self.letters != "offered" and self.answer != "letter":
            raise ValueError("`letters` has no effect on answers by word")
        return self

    def choices(self) -> list[tuple[str, str, ComponentSpec]]:
        """Return every component named: its key, its kind, the choice."""
        named = [(key, KIND_OF[key], getattr(self, key)) for key in KIND_OF]
        return named + [
            (f"evaluation.inputs.{name}", "input", choice)
            for name, choice in self.evaluation.inputs.items()
        ]


def shipped_paths() -> dict[str, Path]:
    """Return every recipe and sweep that ships with modulate: name → file."""
    root = Path(str(importlib.resources.files(RECIPES)))
    return {p.relative_to(root).with_suffix("").as_posix(): p for p in sorted(root.rglob("*.yaml"))}


def recipe_paths() -> dict[str, Path]:
    """Return the recipes that ship with modulate: name → file."""
    return {name: path for name, path in shipped_paths().items() if not name.startswith(SWEEPS)}


def sweep_paths() -> dict[str, Path]:
    """Return the sweeps that ship with modulate (:mod:`modulate.sweeps.sweep`): name → file."""
    return {name: path for name, path in shipped_paths().items() if name.startswith(SWEEPS)}


def find_recipe(name_or_path: str) -> Path:
    """Return the file of a recipe given as path or as the name of a shipped one.

    Raises :class:`MissingFileError`.
    """
    return find(name_or_path, recipe_paths(), "recipe")


def find(name_or_path: str, shipped: Mapping[str, Path], what: str) -> Path:
    """Return the file given as path or as a name in ``shipped``.

    Raises :class:`MissingFileError`; ``what`` is what was looked for.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    name = name_or_path.removeprefix("recipes/").removesuffix(".yaml")
    if name in shipped:
        return shipped[name]
    raise MissingFileError(
        f"No {what} {name_or_path!r}: neither a file nor a shipped {what}."
        f" {near_matches(name, shipped)}"
    )


def load_recipe(name_or_path: str, overrides: Iterable[str] = ()) -> Recipe:
    """Read and validate a recipe, with ``key.sub=value`` overrides (values are YAML).

    Raises :class:`RecipeError`.

    A recipe that says ``extends: OTHER`` (a shipped recipe's name, or a file beside its own) is
    that one with its own keys laid over it.
    """
    path = find_recipe(name_or_path)
    tree = _read(path, ())
    for text in overrides:
        override(tree, text)
    return validate(tree, str(path))


def load_saved_recipe(path: Path) -> Recipe:
    """Read the recipe in a run's folder, also one that an earlier version saved under keys renamed
    since.

    Raises :class:`RecipeError`.
    """
    return validate(translate(_read(path, ())), str(path))


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in above:
        raise RecipeError(f"{path} extends itself, by way of {' → '.join(p.name for p in above)}.")
    if len(above) > MAX_EXTENDS:
        raise RecipeError(
            f"{above[0]} stands on more than {MAX_EXTENDS} recipes, each extending the next; write"
            " some of them out."
        )
    tree = read_yaml(path)
    if not isinstance(tree, dict):
        raise RecipeError(f"{path} must hold a mapping of recipe keys, got {type(tree).__name__}.")
    if "axes" in tree:
        raise RecipeError(
            f"{path} is a sweep over recipes, no recipe: `modulate sweep {path}` runs it."
        )
    base = tree.pop("extends", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise RecipeError(f"{path}: extends must be one recipe's name or file, got {base!r}.")
    beside = path.parent / base
    return overlay(
        _read(beside if beside.is_file() else find_recipe(base), (*above, path.resolve())), tree
    )


def overlay(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Lay the keys of ``own`` over ``base``: sections key by key, lists and values whole; a
    component of another name replaces the whole component.
    """
    merged = dict(base)
    for key, value in own.items():
        before = base.get(key)
        alike = (
            isinstance(before, dict)
            and isinstance(value, dict)
            and value.get("name", before.get("name")) == before.get("name")
        )
        merged[key] = overlay(before, value) if alike else value  # type: ignore[arg-type]
    return merged


def override(tree: dict[str, Any], text: str) -> None:
    """Apply one ``key.sub=value`` to a recipe's tree, in place; list items by index
    (``training.stages.0.epochs=2``).

    Sections that are absent are made; raises :class:`RecipeError` for those that no recipe has.
    """
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise RecipeError(f"Override {text!r} is not of the form key.sub=value.")
    if any(
        "\ud800" <= character <= "\udfff" for character in key
    ):  # how Python shows bytes of a command line that are no text
        raise RecipeError(f"Override {text[:60]!r}: its key is no UTF-8 text.")
    *path, last = key.split(".")
    if len(path) >= YAML_DEPTH:
        raise RecipeError(
            f"Override {text[:60]!r}…: its key is nested deeper than {YAML_DEPTH} levels."
        )
    _refuse_unknown(path, text)
    parsed = parse_yaml(value, f"Override {text[:60]!r} has a value that")
    node: Any = tree
    try:
        for part in path:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        node[int(last) if isinstance(node, list) else last] = parsed
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise RecipeError(f"Override {text!r} does not fit the recipe: {error}.") from error


def _refuse_unknown(path: Sequence[str], text: str) -> None:
    """Raise where ``path`` leaves a recipe's sections.

    What is below a component's ``params`` is for that component's class to say, later.
    """
    keys = [int(part) if part.isdecimal() else part for part in path]
    for depth, part in enumerate(keys):
        known = _known_keys(Recipe, keys[:depth])
        if known and isinstance(part, str) and part not in known:
            key = ".".join(path[: depth + 1])
            raise RecipeError(
                f"Override {text!r}: unknown recipe key {key!r}. {_advice(key, known)}"
            )


def validate(tree: Mapping[str, Any], source: str) -> Recipe:
    """Validate a recipe's tree and every component's parameters.

    Raises :class:`RecipeError` with a line for every problem.
    """
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(explain(error, source, Recipe)) from error
    for key, kind, choice in recipe.choices():
        try:
            choice.resolved(kind)
        except ValidationError as error:
            raise RecipeError(
                explain(
                    error,
                    f"{source}: {key}.params of {choice.name}",
                    plugins.get(kind, choice.name).Params,
                )
            ) from error
    known = BUILT_IN.keys() | controls_of(recipe.signal).keys()
    clash = sorted(recipe.evaluation.inputs.keys() & known)
    if clash:
        raise RecipeError(
            f"{source}: evaluation.inputs: {clash[0]!r} is a condition already; give that input"
            " another name."
        )
    for name in recipe.evaluation.conditions:
        if name not in known:
            raise RecipeError(
                f"{source}: evaluation.conditions: {name!r} is no condition."
                f" {near_matches(name, known)}"
            )
    return recipe


def refuse_remote_code(recipe: Recipe) -> None:
    """Raise :class:`RecipeError` when a component's parameters say ``trust_remote_code: true``."""
    for key, kind, choice in recipe.choices():
        _, params = choice.resolved(kind)
        if getattr(params, "trust_remote_code", False):
            raise RecipeError(
                f"{key}.params of the recipe {recipe.name!r} say trust_remote_code: Python files"
                " that come with the model would run on this machine, with all that you may do. If"
                " you have read them and want that, add --trust-remote-code to the command (in"
                " Python: Pipeline(…, trust_remote_code=True)); otherwise take the line out."
            )


def explain(error: ValidationError, source: str, model: type[BaseModel] | None) -> str:
    """Turn pydantic's findings into lines: where, what was given, what is allowed.

    Long ones are cut, many are counted.
    """
    lines = [f"{source} is not valid:"]
    found = error.errors()
    for item in found[:MAX_FINDINGS]:
        where = _short(".".join(str(part) for part in item["loc"])) or "(whole)"
        if item["type"] == "extra_forbidden":
            known = _known_keys(model, item["loc"][:-1])
            lines.append(
                f"  {where}: unknown key. {_advice(where, known) if known else ''}".rstrip()
            )
        else:
            whole = item["type"] == "value_error" and isinstance(
                item["input"], Mapping
            )  # keys that contradict each other: the text names them
            lines.append(
                f"  {where}: {item['msg'].removeprefix('Value error, ')}"
                + ("" if whole else f", got {_short(repr(item['input']))}")
            )
    if len(found) > MAX_FINDINGS:
        lines.append(f"  … and {len(found) - MAX_FINDINGS} more.")
    return "\n".join(lines)


def _advice(key: str, known: Sequence[str]) -> str:
    """Return what to write instead of the unknown dotted ``key``, given the ``known`` keys of its
    section.
    """
    renamed = new_name(key)
    if renamed:
        return f"It was renamed to {renamed}."
    return near_matches(key.rpartition(".")[2], known)


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}…"


def _known_keys(model: Any, path: Sequence[str | int]) -> list[str]:
    for part in path:
        if isinstance(part, int):
            continue
        annotation = (
            model.model_fields[part].annotation
            if model is not None and part in model.model_fields
            else None
        )
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next(
            (c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None
        )
    return sorted(model.model_fields) if model is not None else []


def dump(recipe: Recipe) -> str:
    """Return a recipe as YAML, every default written out."""
    return yaml.safe_dump(json.loads(recipe.model_dump_json()), sort_keys=False, allow_unicode=True)


def differing(a: Recipe, b: Recipe) -> list[str]:
    """Return the dotted keys in which two recipes differ. Defaults count as written: a recipe of an
    earlier version has those of keys that it did not know.
    """
    return _differing(json.loads(a.model_dump_json()), json.loads(b.model_dump_json()), "")


def _differing(a: Any, b: Any, prefix: str) -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        return [
            d
            for key in sorted(a.keys() | b.keys())
            for d in _differing(a.get(key), b.get(key), f"{prefix}.{key}".lstrip("."))
        ]
    return [] if a == b else [prefix]


def schema() -> dict[str, Any]:
    """Return the JSON Schema of recipes, for editors; one that extends another may leave any key
    out.
    """
    whole = Recipe.model_json_schema()
    definitions = whole.pop("$defs")
    loose = json.loads(
        json.dumps({"": whole, **definitions}).replace('"#/$defs/', '"#/$defs/part of ')
    )
    for part in loose.values():
        part.pop("required", None)
    extending = loose.pop("")
    extends = {
        "type": "string",
        "description": (
            "name of a shipped recipe, or a file beside this one, over which this recipe's keys are"
            " laid"
        ),
    }
    extending |= {
        "properties": {"extends": extends, **extending["properties"]},
        "required": ["extends"],
    }
    return {
        "title": whole["title"],
        "anyOf": [whole, extending],
        "$defs": definitions | {f"part of {name}": part for name, part in loose.items()},
    }
