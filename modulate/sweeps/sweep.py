"""Sweeps: one recipe changed along several axes, over several seeds, with companion runs.

Companions are trained without the signal; a gain of a signal run counts only against them.
"""

import copy
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from pydantic import Field, ValidationError, field_validator

from modulate.config.recipe import (
    KIND_OF,
    Recipe,
    explain,
    find,
    load_recipe,
    overlay,
    override,
    sweep_paths,
    validate,
)
from modulate.config.sections import Section
from modulate.errors import ModulateError, RecipeError, near_matches
from modulate.utils.safe_load import parse_yaml, read_yaml

Overrides = dict[str, Any] | tuple[str | dict[str, Any], ...] | None
"""Recipe keys → values, or a list of such mappings and of ``key.sub=value`` texts."""

CompanionKind = Literal["lora_only", "gaze_free"]
Role = Literal["base", "variant", "lora_only", "gaze_free"]

BASE: Final = "base"

LABEL_PATTERN = re.compile(r"[A-Za-z0-9_]{1,40}")
"""Names of axes and options, which become part of run and folder names."""


class Sweep(Section):
    """The contents of a sweep file.

    Overrides are a mapping of recipe keys, or a list of such mappings and of ``key.sub=value``
    texts.
    """

    name: str = Field(
        pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$",
        max_length=60,
        description="name of the sweep, and of the folder of its runs: runs/<name>",
    )
    base: str = Field(
        description=(
            "recipe that the axes change: the name of a shipped one, or a file (a path may be"
            " relative to the sweep file)"
        )
    )
    mode: Literal["one_at_a_time", "grid"] = Field(
        "one_at_a_time",
        description=(
            "one_at_a_time: the base, and each option of each axis on its own; grid: every"
            " combination of one option per axis"
        ),
    )
    axes: dict[str, dict[str, Overrides]] = Field(
        min_length=1,
        description=(
            "axis → option → overrides; an option without overrides stands for the base on that"
            " axis"
        ),
    )
    seeds: tuple[int, ...] = Field(
        (0,), min_length=1, description="every run is repeated with each seed"
    )
    companions: tuple[CompanionKind, ...] = Field(
        (),
        description=(
            "runs to compare with: lora_only trains the same LoRA without modulation (only the"
            " stages that train LoRA); gaze_free trains the same modulation on blank signals"
        ),
    )
    beside: Literal["every", "base"] = Field(
        "every",
        description=(
            "every: companions of every run, identical ones only once; base: companions of the base"
            " only"
        ),
    )
    common: Overrides = Field(
        None, description="overrides of every run, applied to the base before those of the axes"
    )
    others: Overrides = Field(
        None,
        description=(
            "overrides of every run but the base (fewer controls, for example), applied before"
            " those of the axes"
        ),
    )

    @field_validator("axes")
    @classmethod
    def _check_axes(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for axis, options in value.items():
            if not options:
                raise ValueError(f"axis {axis!r} has no options")
            for name in (axis, *options):
                if not LABEL_PATTERN.fullmatch(name):
                    raise ValueError(
                        f"{name[:50]!r} cannot be part of a run's name; axes and options consist of"
                        " letters, digits and underscores, at most 40"
                    )
        return value

    @field_validator("seeds", "companions")
    @classmethod
    def _refuse_duplicates(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(value)) < len(value):
            raise ValueError("no value may be listed twice")
        return value


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    ``options``: axis → option that the run stands for. ``beside``: names of the runs that it is the
    companion of.
    """

    recipe: Recipe
    role: Role
    options: dict[str, str] = field(default_factory=dict)
    beside: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the run and of its folder."""
        return self.recipe.name


# --- reading a sweep


def load_sweep(name_or_path: str, overrides: Iterable[str] = ()) -> Sweep:
    """Read a sweep file and apply ``key.sub=value`` overrides.

    Overrides of a sweep's own keys replace them; others change the recipe of every run. Raises
    :class:`RecipeError`.
    """
    path = find(name_or_path, sweep_paths(), "sweep")
    tree = read_yaml(path)
    if not isinstance(tree, dict):
        raise RecipeError(
            f"{path} must hold a mapping of a sweep's keys, got {type(tree).__name__}."
        )
    common: list[str] = []
    for text in overrides:
        key, separator, value = text.partition("=")
        if key in Sweep.model_fields and separator:
            tree[key] = parse_yaml(value, f"Override {text[:60]!r} has a value that")
        # `name` is also a recipe key, but recipes of a sweep may not override it: see below.
        elif key.partition(".")[0] in Sweep.model_fields.keys() - {"name"}:
            raise RecipeError(
                f"Override {text!r}: the keys of a sweep are replaced whole, e.g. seeds=[0,1];"
                f" {key!r} is below one."
            )
        else:
            common.append(text)
    try:
        sweep = Sweep.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(explain(error, str(path), Sweep)) from error
    base_file = path.parent / sweep.base
    return sweep.model_copy(
        update={
            "base": str(base_file) if base_file.is_file() else sweep.base,
            "common": (*_as_list(sweep.common), *common),
        }
    )


# --- planning runs


def plan_runs(sweep: Sweep) -> list[PlannedRun]:
    """Return a sweep's distinct runs, each with a valid recipe, and then their companions.

    Runs are in the order of seeds; within a seed the base comes first. Raises :class:`RecipeError`,
    naming axis and option, for an invalid recipe, for two options of one axis that make the same
    run, and for impossible companions.
    """
    base_recipe = json.loads(load_recipe(sweep.base).model_dump_json())
    base = apply_overrides(base_recipe, sweep.common, f"Sweep {sweep.name}, common")
    runs: dict[str, PlannedRun] = {}
    for seed in sweep.seeds:
        _plan_seed(sweep, base, seed, runs)
    ordered = sorted(
        runs.values(), key=lambda run: (sweep.seeds.index(run.recipe.seed), run.role != BASE)
    )
    # Only now: overrides of `others` must not decide which runs are the base.
    final = [_apply_others(sweep, run) for run in ordered]
    return [*final, *_plan_companions(sweep, base, final)]


def _plan_seed(sweep: Sweep, base: dict[str, Any], seed: int, runs: dict[str, PlannedRun]) -> None:
    """Add the runs of one seed to ``runs``, whose keys are the recipes' contents."""
    base_run = _validated(sweep, base, {}, f"{BASE}-s{seed}", seed)
    base_key = _content(base_run)
    for options, tree in _variants(sweep, base):
        recipe = base_run
        if options:
            recipe = _validated(sweep, tree, options, f"{_label(options)}-s{seed}", seed)
        key = _content(recipe)
        known = runs.get(key)
        if known is not None:
            _check_options(sweep, known, options)
            runs[key] = replace(known, options=known.options | options)
        elif key == base_key:
            runs[key] = PlannedRun(base_run, BASE, options)
        else:
            runs[key] = PlannedRun(recipe, "variant", options)


def _check_options(sweep: Sweep, known: PlannedRun, options: Mapping[str, str]) -> None:
    """Raise if two options of one axis make the same run; those of different axes may."""
    for axis, option in options.items():
        first = known.options.get(axis, option)
        if first != option:
            raise RecipeError(
                f"Sweep {sweep.name}, axis {axis}: the options {first!r} and {option!r} come to the"
                " same run; take one out."
            )


def _variants(
    sweep: Sweep, base: dict[str, Any]
) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """Yield (options, recipe tree) of everything that the axes ask for, duplicates included."""
    if sweep.mode == "one_at_a_time":
        yield {}, base
        combinations = [
            {axis: option} for axis, options in sweep.axes.items() for option in options
        ]
    else:
        products = itertools.product(*sweep.axes.values())
        combinations = [dict(zip(sweep.axes, options, strict=True)) for options in products]
    for options in combinations:
        yield options, _apply_options(sweep, base, options)


def _label(options: Mapping[str, str]) -> str:
    return "-".join(f"{axis}-{option}" for axis, option in options.items())


def _content(recipe: Recipe) -> str:
    """Return what identifies a recipe whatever its name, with components' defaults filled in."""
    tree = json.loads(recipe.model_dump_json(exclude={"name", *KIND_OF}))
    components = {
        key: [spec.name, spec.resolved(kind)[1].model_dump(mode="json")]
        for key, kind, spec in recipe.component_specs()
    }
    return json.dumps([tree, components], sort_keys=True)


def _validated(
    sweep: Sweep, tree: Mapping[str, Any], options: Mapping[str, str], name: str, seed: int
) -> Recipe:
    where = (
        f"Sweep {sweep.name}, run {name}" if options else f"Sweep {sweep.name}, base {sweep.base}"
    )
    try:
        return validate({**tree, "name": name, "seed": seed}, where)
    except RecipeError:
        raise
    except ModulateError as error:
        # Other errors, such as a component's, do not say which run they are about.
        raise type(error)(f"{where}: {error}") from error


# --- overrides


def apply_overrides(tree: Mapping[str, Any], overrides: Overrides, where: str) -> dict[str, Any]:
    """Return a copy of a recipe's ``tree`` with ``overrides`` applied.

    ``where``: what they belong to, for errors. Raises :class:`RecipeError`.
    """
    result = copy.deepcopy(dict(tree))
    for part in _as_list(overrides):
        keys = [part.partition("=")[0]] if isinstance(part, str) else list(part)
        reserved = [key for key in keys if key in ("name", "seed", "extends")]
        if reserved:
            raise RecipeError(
                f"{where}: {reserved[0]!r} cannot be overridden. A sweep names its runs itself; set"
                " `seeds` and `base` instead."
            )
        try:
            if isinstance(part, str):
                override(result, part)
            else:
                _check_keys(part)
                result = copy.deepcopy(overlay(result, part))
        except RecipeError as error:
            raise RecipeError(f"{where}: {error}") from error
    return result


def _check_keys(part: Mapping[str, Any]) -> None:
    for key in part:
        if key not in Recipe.model_fields:
            raise RecipeError(
                f"unknown recipe key {key!r}. {near_matches(key, Recipe.model_fields)}"
            )


def _as_list(overrides: Overrides) -> tuple[str | dict[str, Any], ...]:
    return (overrides,) if isinstance(overrides, dict) else tuple(overrides or ())


def _apply_options(
    sweep: Sweep, tree: dict[str, Any], options: Mapping[str, str]
) -> dict[str, Any]:
    for axis, option in options.items():
        where = f"Sweep {sweep.name}, axis {axis}, option {option}"
        tree = apply_overrides(tree, sweep.axes[axis][option], where)
    return tree


def _apply_others(sweep: Sweep, run: PlannedRun) -> PlannedRun:
    """Apply the overrides of all runs but the base."""
    if run.role == BASE or not _as_list(sweep.others):
        return run
    tree = json.loads(run.recipe.model_dump_json())
    tree = apply_overrides(tree, sweep.others, f"Sweep {sweep.name}, others")
    # Once more, because an axis has the last word on the keys that it changes.
    tree = _apply_options(sweep, tree, run.options)
    return replace(run, recipe=_validated(sweep, tree, run.options, run.name, run.recipe.seed))


# --- companions


def _plan_companions(
    sweep: Sweep, base: dict[str, Any], runs: Iterable[PlannedRun]
) -> list[PlannedRun]:
    """Return the companions of ``runs``; one that serves several of them is planned once."""
    builders = {"lora_only": _lora_only, "gaze_free": _gaze_free}
    companions: dict[str, PlannedRun] = {}
    for kind in sweep.companions:
        for run in runs:
            if run.role != BASE and sweep.beside == BASE:
                continue
            tree = builders[kind](sweep, run, base)
            if tree is None:
                continue
            name = f"{kind}-s{run.recipe.seed}" if run.role == BASE else f"{kind}-{run.name}"
            recipe = _validated(sweep, tree, {kind: run.name}, name, run.recipe.seed)
            key = _content(recipe)
            companion = companions.get(key, PlannedRun(recipe, kind))
            companions[key] = replace(companion, beside=(*companion.beside, run.name))
    return list(companions.values())


def _lora_only(sweep: Sweep, run: PlannedRun, base: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the recipe that trains the same LoRA for as long, without modulation.

    None if the run trains no LoRA.
    """
    tree = json.loads(run.recipe.model_dump_json())
    stages = [
        {**stage, "train": ["lora"]}
        for stage in tree["training"]["stages"]
        if "lora" in stage["train"]
    ]
    if not stages:
        _refuse_for_base(sweep, run, "lora_only", "no stage of it trains LoRA")
        return None
    # The modulation has no effect: with the base's, runs that differ only in it share a companion.
    modulation = {key: base[key] for key in ("encoder", "modulator", "backbone", "injection")}
    changes = {
        "training": tree["training"] | {"condition": "none", "stages": stages},
        "evaluation": _companion_evaluation(tree, base, "host", "text_only"),
    }
    return tree | modulation | changes


def _gaze_free(sweep: Sweep, run: PlannedRun, base: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the recipe that trains and evaluates the same modulation with blank signals.

    None if a blank signal leaves nothing to train.
    """
    if run.recipe.injection.empty == "none":
        reason = "with injection.empty `none` a blank signal adds nothing that could be trained"
        _refuse_for_base(sweep, run, "gaze_free", reason)
        return None
    tree = json.loads(run.recipe.model_dump_json())
    return tree | {
        # Every encoder returns exactly 0 for a blank signal, so runs share a companion here too.
        "encoder": base["encoder"],
        "training": tree["training"] | {"condition": "blank"},
        "evaluation": _companion_evaluation(tree, base, "none", "host", "text_only"),
    }


def _refuse_for_base(sweep: Sweep, run: PlannedRun, kind: str, reason: str) -> None:
    """Raise if ``run`` is the base; other runs just have no such companion."""
    if run.role == BASE:
        raise RecipeError(
            f"Sweep {sweep.name}: {kind} cannot stand beside {run.name}: {reason}. Take it out of"
            " `companions`."
        )


def _companion_evaluation(
    tree: Mapping[str, Any], base: Mapping[str, Any], *meaningful: str
) -> dict[str, Any]:
    """Return a companion's evaluation: those of the base's conditions that mean something to it."""
    conditions = [name for name in base["evaluation"]["conditions"] if name in meaningful]
    return tree["evaluation"] | {"conditions": conditions, "inputs": {}}
