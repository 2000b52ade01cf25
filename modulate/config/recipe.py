"""Recipes: typed YAML files that name every component and setting of a run. Imports no torch."""

import importlib.resources
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from modulate import plugins
from modulate.config.injection import Injection, LoraParams
from modulate.config.renamed_keys import translate
from modulate.config.sections import (
    Evaluation,
    Features,
    MainMetric,
    Sampling,
    Section,
    Training,
)
from modulate.config.signal_use import check_signal_use, usual_conditions
from modulate.config.validation_errors import advice, explain, known_keys
from modulate.errors import MissingFileError, RecipeError, near_matches
from modulate.interfaces.params import ComponentSpec
from modulate.interfaces.prompt import AnswerForm
from modulate.utils.safe_load import YAML_DEPTH, parse_yaml, read_yaml

RECIPES = "modulate_recipes"

SWEEPS = "ablations/"
"""Folder of the shipped sweeps, within the folder of shipped recipes."""

MAX_EXTENDS = 8
"""Longest chain of recipes in which each extends the next."""

#: Component kind of each recipe key that names a component.
KIND_OF = {
    "host": "host",
    "backbone": "backbone",
    "encoder": "signal_encoder",
    "modulator": "modulator",
    "data": "dataset",
}


class Recipe(Section):
    """Everything needed to repeat a run."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$",
        max_length=100,
        description="name of the run's folder, runs/<name>",
    )
    seed: int = Field(0, description="seed of initialization, sample order and augmentation")
    host: ComponentSpec = Field(description="frozen multimodal LLM that answers the questions")
    backbone: ComponentSpec = Field(
        description=(
            "frozen vision encoder that gives the modulator its features of the raw frames"
        )
    )
    signal: str = Field(
        "gaze",
        description=(
            "kind of side signal; `a+b` for several kinds that one encoder reads together"
        ),
    )
    encoder: ComponentSpec = Field(
        description="signal encoder: turns the signal into features of each visual token"
    )
    modulator: ComponentSpec = Field(
        description="network that makes residuals from signal features and frame features"
    )
    injection: Injection = Field(
        description="which layers and tokens of the host receive residuals"
    )
    lora: LoraParams | None = Field(
        None, description="low-rank adaptation trained with the modulation; `null`: none"
    )
    data: ComponentSpec = Field(
        description="data set: questions about clips, their signals, and their splits"
    )
    features: Features = Field(
        Features(), description="how features, decoded frames and the host's outputs are cached"
    )
    sampling: Sampling = Field(
        Sampling(), description="which frames of a clip the host and the backbone see"
    )
    answer: AnswerForm = Field(
        "letter",
        description=(
            "what the host answers with. `letter`: the letter of an option. `word`: an option,"
            " which must then be a single token. `likelihood`: an option of any length, by the"
            " likelihood of its tokens. `text`: free text, which is trained token by token and"
            " evaluated as it is generated"
        ),
    )
    likelihood: Literal["sum", "mean", "first"] = Field(
        "sum",
        description=(
            "score of an option under `answer: likelihood`, from the log-probabilities of its"
            " tokens after the prompt, without the end of the turn. `sum`: of all tokens."
            " `mean`: their mean, so that long options are at no disadvantage. `first`: the first"
            " token alone, which must then differ between a question's options"
        ),
    )
    letters: Literal["offered", "four"] = Field(
        "offered",
        description=(
            "letters to choose from. `offered`: those of the question's options. `four`: A to"
            " D even if the question has fewer options [GazeQwen's code]"
        ),
    )
    training: Training = Field(description="how the modulation is trained")
    evaluation: Evaluation = Field(
        Evaluation(), description="how answers are scored, and under which controls"
    )

    # Validators run in this order, and the first contradiction ends the validation.

    @model_validator(mode="after")
    def _stages_can_learn(self) -> "Recipe":
        trained = {part for stage in self.training.stages for part in stage.train}
        if "lora" in trained and self.lora is None:
            raise ValueError("a stage trains lora, but the recipe has no `lora:` section")
        if self.training.condition == "none" and trained != {"lora"}:
            raise ValueError(
                "condition `none` gives the modulator no gradient: every stage must train [lora]"
                " only"
            )
        return self

    @model_validator(mode="after")
    def _batches_can_be_formed(self) -> "Recipe":
        by_clip = self.training.batch_by == "clip"
        if self.training.batch_by != "any" and self.training.batch_size == 1:
            raise ValueError(
                f"`training.batch_by: {self.training.batch_by}` has no effect with batch_size 1"
            )
        if by_clip:
            self._refuse_text_tokens("training")
        if by_clip and self.training.gradient_checkpointing:
            raise ValueError(
                "`training.batch_by: clip` keeps the layers' outputs for the clip in a key-value"
                " cache, which recomputed layers cannot fill: drop one of the two"
            )
        if self.evaluation.batch_by == "clip" and self.evaluation.batch_size == 1:
            raise ValueError("`evaluation.batch_by: clip` has no effect with batch_size 1")
        if self.evaluation.batch_by == "clip":
            self._refuse_text_tokens("evaluation")
        return self

    def _refuse_text_tokens(self, section: str) -> None:
        """Raise ValueError if residuals go to tokens after the prefix that questions share."""
        if self.injection.tokens.kind != "visual":
            raise ValueError(
                f"`{section}.batch_by: clip` processes a clip once, before the questions differ,"
                " and so can write to visual tokens only"
            )

    @model_validator(mode="after")
    def _empty_signals_give_gradients(self) -> "Recipe":
        trains_modulator = any("modulator" in stage.train for stage in self.training.stages)
        no_residuals = self.training.condition == "blank" and self.injection.empty == "none"
        if no_residuals and trains_modulator:
            raise ValueError(
                "condition `blank` with `injection.empty: none` gives the modulator no gradient:"
                " train [lora] only, or give residuals to clips with an empty signal"
            )
        return self

    @model_validator(mode="after")
    def _answers_are_scored(self) -> "Recipe":
        if self.letters != "offered" and self.answer != "letter":
            raise ValueError(f"`letters` has no effect on `answer: {self.answer}`")
        if self.likelihood != "sum" and self.answer != "likelihood":
            raise ValueError(f"`likelihood` has no effect on `answer: {self.answer}`")
        if self.answer == "text" and self.evaluation.batch_by == "clip":
            raise ValueError("`evaluation.batch_by: clip` has no effect on generated text")
        if self.answer != "text":
            for key in ("max_new_tokens", "main_metric"):
                if key in self.evaluation.differing_keys():
                    raise ValueError(f"`evaluation.{key}` has no effect on `answer: {self.answer}`")
        return self

    @model_validator(mode="after")
    def _answers_can_be_continued(self) -> "Recipe":
        has_many_tokens = self.answer == "text" or self.scores_whole_options
        if has_many_tokens and self.injection.tokens.kind in ("last", "mask"):
            raise ValueError(
                f"`answer: {self.answer}` has several tokens; residuals of kind"
                f" `{self.injection.tokens.kind}` are for one: write to visual or text tokens"
            )
        if self.scores_whole_options and self.training.gradient_checkpointing:
            raise ValueError(
                "`answer: likelihood` keeps prompts in a key-value cache, which recomputed layers"
                " cannot fill: drop gradient_checkpointing, or score `likelihood: first`"
            )
        return self

    @property
    def scores_whole_options(self) -> bool:
        """Whether options are scored by all of their tokens."""
        return self.answer == "likelihood" and self.likelihood != "first"

    @property
    def main_metric(self) -> MainMetric:
        """What the main figures are: accuracy, or a score of generated text."""
        return self.evaluation.main_metric if self.answer == "text" else "accuracy"

    def component_specs(self) -> list[tuple[str, str, ComponentSpec]]:
        """Return (key, kind, spec) of every component that the recipe names."""
        components = [(key, kind, getattr(self, key)) for key, kind in KIND_OF.items()]
        inputs = [
            (f"evaluation.inputs.{name}", "input", spec)
            for name, spec in self.evaluation.inputs.items()
        ]
        return components + inputs


def shipped_paths() -> dict[str, Path]:
    """Return the file of every shipped recipe and sweep, by name."""
    root = Path(str(importlib.resources.files(RECIPES)))
    paths = sorted(root.rglob("*.yaml"))
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in paths}


def recipe_paths() -> dict[str, Path]:
    """Return the file of every shipped recipe, by name."""
    return {name: path for name, path in shipped_paths().items() if not name.startswith(SWEEPS)}


def sweep_paths() -> dict[str, Path]:
    """Return the file of every shipped sweep (:mod:`modulate.sweeps.sweep`), by name."""
    return {name: path for name, path in shipped_paths().items() if name.startswith(SWEEPS)}


def find_recipe(name_or_path: str) -> Path:
    """Return the file of a recipe, given as a path or as the name of a shipped recipe.

    Raises :class:`MissingFileError`.
    """
    return find(name_or_path, recipe_paths(), "recipe")


def find(name_or_path: str, shipped: Mapping[str, Path], what: str) -> Path:
    """Return the file given as a path or as a name in ``shipped``.

    ``what``: what the file holds, for the message of :class:`MissingFileError`.
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
    """Read and validate a recipe, with ``key.sub=value`` overrides whose values are YAML.

    A recipe with ``extends: OTHER`` (the name of a shipped recipe, or a file in the same folder) is
    OTHER with its own keys laid over it. Raises :class:`RecipeError`, :class:`MissingFileError`.
    """
    path = find_recipe(name_or_path)
    tree = _read(path, ())
    for text in overrides:
        override(tree, text)
    return validate(tree, str(path))


def load_saved_recipe(path: Path) -> Recipe:
    """Read the recipe in a run's folder, also one saved by an earlier version under renamed keys.

    Raises :class:`RecipeError`.
    """
    return validate(translate(_read(path, ())), str(path))


def _read(path: Path, extended_by: tuple[Path, ...]) -> dict[str, Any]:
    """Return a recipe's tree laid over those that it extends.

    ``extended_by``: the recipes that led here, from the first one read.
    """
    if path.resolve() in extended_by:
        chain = " → ".join(recipe.name for recipe in extended_by)
        raise RecipeError(f"{path} extends itself, by way of {chain}.")
    if len(extended_by) > MAX_EXTENDS:
        raise RecipeError(
            f"{extended_by[0]} extends a chain of more than {MAX_EXTENDS} recipes; write some of"
            " them out."
        )
    tree = read_yaml(path)
    if not isinstance(tree, dict):
        raise RecipeError(f"{path} must hold a mapping of recipe keys, got {type(tree).__name__}.")
    if "axes" in tree:
        raise RecipeError(f"{path} is a sweep, not a recipe: `modulate sweep {path}` runs it.")
    base = tree.pop("extends", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise RecipeError(f"{path}: extends must be the name or file of one recipe, got {base!r}.")
    # A file in the same folder goes first, so that a copied recipe can extend its neighbor.
    neighbor = path.parent / base
    base_path = neighbor if neighbor.is_file() else find_recipe(base)
    return overlay(_read(base_path, (*extended_by, path.resolve())), tree)


def overlay(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Return ``base`` with the keys of ``own`` laid over it.

    Sections are merged key by key; lists and values are replaced. A component of another name
    replaces the whole component, since the parameters of the old one would not fit.
    """
    merged = dict(base)
    for key, value in own.items():
        old = base.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and _same_component(old, value):
            merged[key] = overlay(old, value)
        else:
            merged[key] = value
    return merged


def _same_component(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Return whether ``new`` names no other component than ``old``; sections name none."""
    return bool(new.get("name", old.get("name")) == old.get("name"))


def override(tree: dict[str, Any], text: str) -> None:
    """Apply one ``key.sub=value`` to a recipe's ``tree``, in place.

    List items are named by index (``training.stages.0.epochs=2``). Missing sections are created;
    raises :class:`RecipeError` for those that no recipe has.
    """
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise RecipeError(f"Override {text!r} is not of the form key.sub=value.")
    # Python decodes bytes of a command line that are not UTF-8 as surrogates.
    if any("\ud800" <= character <= "\udfff" for character in key):
        raise RecipeError(f"Override {text[:60]!r}: its key is not UTF-8 text.")
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
    """Raise :class:`RecipeError` if ``path`` leaves the sections of a recipe.

    Keys below a component's ``params`` are checked later, by the component's own class.
    """
    keys = [int(part) if part.isdecimal() else part for part in path]
    for depth, part in enumerate(keys):
        known = known_keys(Recipe, keys[:depth])
        if known and isinstance(part, str) and part not in known:
            key = ".".join(path[: depth + 1])
            raise RecipeError(
                f"Override {text!r}: unknown recipe key {key!r}. {advice(key, known)}"
            )


def validate(tree: Mapping[str, Any], source: str) -> Recipe:
    """Return the recipe of ``tree``, with every component's parameters validated.

    ``source``: where the tree is from. Raises :class:`RecipeError`, with one line per problem.
    """
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(explain(error, source, Recipe)) from error
    for key, kind, spec in recipe.component_specs():
        try:
            spec.resolved(kind)
        except ValidationError as error:
            params = plugins.get(kind, spec.name).Params
            source_of_params = f"{source}: {key}.params of {spec.name}"
            raise RecipeError(explain(error, source_of_params, params)) from error
    evaluation = usual_conditions(recipe.signal, recipe.evaluation)
    recipe = recipe.model_copy(update={"evaluation": evaluation})
    check_signal_use(recipe.signal, recipe.encoder, evaluation, source)
    return recipe


def refuse_remote_code(recipe: Recipe) -> None:
    """Raise :class:`RecipeError` if a component's parameters set ``trust_remote_code: true``."""
    for key, kind, spec in recipe.component_specs():
        _, params = spec.resolved(kind)
        if getattr(params, "trust_remote_code", False):
            raise RecipeError(
                f"{key}.params of the recipe {recipe.name!r} set trust_remote_code: Python files"
                " that come with the model would run on this machine, with all your permissions."
                " If you have read them and agree, add --trust-remote-code to the command (in"
                " Python: Pipeline(…, trust_remote_code=True)); otherwise remove the line."
            )


def dump(recipe: Recipe) -> str:
    """Return a recipe as YAML, with every default written out."""
    tree = json.loads(recipe.model_dump_json())
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def differing(first: Recipe, second: Recipe) -> list[str]:
    """Return the dotted keys in which two recipes differ, with defaults written out.

    A recipe of an earlier version has the defaults of keys that it did not know.
    """
    trees = [json.loads(recipe.model_dump_json()) for recipe in (first, second)]
    return _differing_keys(trees[0], trees[1], "")


def _differing_keys(first: Any, second: Any, prefix: str) -> list[str]:
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return [] if first == second else [prefix]
    found: list[str] = []
    for key in sorted(first.keys() | second.keys()):
        path = f"{prefix}.{key}".lstrip(".")
        found += _differing_keys(first.get(key), second.get(key), path)
    return found
