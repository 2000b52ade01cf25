"""Sweeps: one recipe, several axes along which it is changed, several seeds; and the runs without
gaze that must stand beside.
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
Companion = Literal["lora_only", "gaze_free"]
Role = Literal["base", "variant", "lora_only", "gaze_free"]

BASE: Final = "base"
LABEL = re.compile(r"[A-Za-z0-9_]{1,40}")


class Sweep(Section):
    """What a sweep file says.

    Overrides are a mapping of recipe keys, or a list of such mappings and of ``key.sub=value``
    texts.
    """

    name: str = Field(
        pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$",
        max_length=60,
        description="also the folder of its runs: runs/<name>",
    )
    base: str = Field(
        description=(
            "recipe that the axes change: name of a shipped one, or a file (also one beside the"
            " sweep's)"
        )
    )
    mode: Literal["one_at_a_time", "grid"] = Field(
        "one_at_a_time",
        description=(
            "one_at_a_time: the base, and each option of each axis on its own; grid: every"
            " combination of one option from each axis"
        ),
    )
    axes: dict[str, dict[str, Overrides]] = Field(
        min_length=1,
        description=(
            "axis → option → overrides; an option without any is the base itself, and gives it a"
            " name on that axis"
        ),
    )
    seeds: tuple[int, ...] = Field(
        (0,), min_length=1, description="every run is repeated with each"
    )
    companions: tuple[Companion, ...] = Field(
        (),
        description=(
            "runs that stand beside: lora_only trains the same LoRA without modulation (the stages"
            " that train LoRA, that alone); gaze_free trains the same modulation on blank signals"
        ),
    )
    beside: Literal["every", "base"] = Field(
        "every",
        description=(
            "every: companions of every run, those that come out alike only once; base: of the base"
            " alone"
        ),
    )
    common: Overrides = Field(
        None, description="overrides of every run, laid over the base before the axes' own"
    )
    others: Overrides = Field(
        None,
        description=(
            "overrides of every run of the axes but the base (fewer controls, say), laid over it"
            " before the axes' own"
        ),
    )

    @field_validator("axes")
    @classmethod
    def _options(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        empty = [axis for axis, options in value.items() if not options]
        if empty:
            raise ValueError(f"axis {empty[0]!r} has no options")
        odd = [
            name
            for axis, options in value.items()
            for name in (axis, *options)
            if not LABEL.fullmatch(name)
        ]
        if odd:
            raise ValueError(
                f"{odd[0][:50]!r} cannot be part of a run's name; axes and options are called by"
                " letters, digits and underscores, at most 40"
            )
        return value

    @field_validator("seeds", "companions")
    @classmethod
    def _once(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(value)) < len(value):
            raise ValueError("nothing may stand there twice")
        return value


@dataclass(frozen=True)
class Planned:
    """One run of a sweep. ``options``: axis → option that it stands for; ``beside``: names of the
    runs that it is the companion of.
    """

    recipe: Recipe
    role: Role
    options: dict[str, str] = field(default_factory=dict)
    beside: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the run and of its folder."""
        return self.recipe.name


def load_sweep(name_or_path: str, overrides: Iterable[str] = ()) -> Sweep:
    """Read a sweep file, with ``key.sub=value`` overrides: a sweep's own keys change the sweep, a
    recipe's are added to ``common``.

    Raises :class:`RecipeError`.
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
    beside = path.parent / sweep.base
    return sweep.model_copy(
        update={
            "base": str(beside) if beside.is_file() else sweep.base,
            "common": (*_parts(sweep.common), *common),
        }
    )


def plan(sweep: Sweep) -> list[Planned]:
    """Return a sweep's runs, each validated, none twice; the base first, then the axes', then
    companions, seed by seed.

    Raises :class:`RecipeError`, naming axis and option, for what is no valid recipe, for two
    options of one axis that come to the same, and for companions that cannot be.
    """
    base = laid(
        json.loads(load_recipe(sweep.base).model_dump_json()),
        sweep.common,
        f"Sweep {sweep.name}, common",
    )
    runs: dict[str, Planned] = {}
    for seed in sweep.seeds:
        around = _validated(sweep, base, {}, f"{BASE}-s{seed}", seed)
        for options, tree in _variants(sweep, base):
            recipe = (
                _validated(sweep, tree, options, f"{_label(options)}-s{seed}", seed)
                if options
                else around
            )
            key = _content(recipe)
            found = runs.get(key)
            if found is None:
                same = key == _content(around)
                runs[key] = Planned(
                    around if same else recipe, BASE if same else "variant", options
                )
                continue
            clash = [
                axis for axis in options if found.options.get(axis, options[axis]) != options[axis]
            ]
            if clash:
                axis = clash[0]
                raise RecipeError(
                    f"Sweep {sweep.name}, axis {axis}: the options {found.options[axis]!r} and"
                    f" {options[axis]!r} come to the same run; take one out."
                )
            runs[key] = replace(found, options=found.options | options)
    chosen = [
        _with_others(sweep, run)
        for run in sorted(
            runs.values(), key=lambda run: (sweep.seeds.index(run.recipe.seed), run.role != BASE)
        )
    ]
    return [*chosen, *_companions(sweep, base, chosen)]


def laid(tree: Mapping[str, Any], overrides: Overrides, where: str) -> dict[str, Any]:
    """Return a copy of a recipe's ``tree`` with ``overrides`` laid over it.

    Raises :class:`RecipeError`; ``where`` says what they belong to.
    """
    result = copy.deepcopy(dict(tree))
    for part in _parts(overrides):
        keys = [part.partition("=")[0]] if isinstance(part, str) else list(part)
        given = [key for key in keys if key in ("name", "seed", "extends")]
        if given:
            raise RecipeError(
                f"{where}: {given[0]!r} is not for overrides. A sweep names its runs itself, and"
                " `seeds` and `base` say the rest."
            )
        try:
            if isinstance(part, str):
                override(result, part)
            else:
                unknown = [key for key in part if key not in Recipe.model_fields]
                if unknown:
                    raise RecipeError(
                        f"unknown recipe key {unknown[0]!r}."
                        f" {near_matches(unknown[0], Recipe.model_fields)}"
                    )
                result = copy.deepcopy(overlay(result, part))
        except RecipeError as error:
            raise RecipeError(f"{where}: {error}") from error
    return result


def _parts(overrides: Overrides) -> tuple[str | dict[str, Any], ...]:
    return (overrides,) if isinstance(overrides, dict) else tuple(overrides or ())


def _variants(
    sweep: Sweep, base: dict[str, Any]
) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """Yield (options, tree) of everything that the axes ask for; several may come to the same run."""
    if sweep.mode == "one_at_a_time":
        yield {}, base
        combinations = [
            {axis: option} for axis, options in sweep.axes.items() for option in options
        ]
    else:
        combinations = [
            dict(zip(sweep.axes, names)) for names in itertools.product(*sweep.axes.values())
        ]
    for options in combinations:
        tree = base
        for axis, option in options.items():
            tree = laid(
                tree, sweep.axes[axis][option], f"Sweep {sweep.name}, axis {axis}, option {option}"
            )
        yield options, tree


def _label(options: Mapping[str, str]) -> str:
    return "-".join(f"{axis}-{option}" for axis, option in options.items())


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
        raise type(error)(f"{where}: {error}") from error


def _content(recipe: Recipe) -> str:
    """Return what a recipe comes to, whatever it is called: components' defaults filled in."""
    tree = json.loads(recipe.model_dump_json(exclude={"name", *KIND_OF}))
    parts = {
        key: [choice.name, choice.resolved(kind)[1].model_dump(mode="json")]
        for key, kind, choice in recipe.component_specs()
    }
    return json.dumps([tree, parts], sort_keys=True)


def _with_others(sweep: Sweep, run: Planned) -> Planned:
    if run.role == BASE or not _parts(sweep.others):
        return run
    tree = laid(
        json.loads(run.recipe.model_dump_json()), sweep.others, f"Sweep {sweep.name}, others"
    )
    for axis, option in run.options.items():  # which have the last word
        tree = laid(
            tree, sweep.axes[axis][option], f"Sweep {sweep.name}, axis {axis}, option {option}"
        )
    return replace(run, recipe=_validated(sweep, tree, run.options, run.name, run.recipe.seed))


# --- companions


def _companions(sweep: Sweep, base: dict[str, Any], runs: Iterable[Planned]) -> list[Planned]:
    made: dict[str, Planned] = {}
    for kind in sweep.companions:
        for run in runs:
            if run.role != BASE and sweep.beside == BASE:
                continue
            tree = (
                _lora_only(sweep, run, base)
                if kind == "lora_only"
                else _gaze_free(sweep, run, base)
            )
            if tree is None:
                continue
            name = f"{kind}-s{run.recipe.seed}" if run.role == BASE else f"{kind}-{run.name}"
            recipe = _validated(sweep, tree, {kind: run.name}, name, run.recipe.seed)
            key = _content(recipe)
            found = made.get(key, Planned(recipe, kind))
            made[key] = replace(found, beside=(*found.beside, run.name))
    return list(made.values())


def _lora_only(sweep: Sweep, run: Planned, base: Mapping[str, Any]) -> dict[str, Any] | None:
    """The same LoRA, trained as long as there, without modulation; None where a run has none.

    What the modulation is made of does not matter.
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
    same = {key: base[key] for key in ("encoder", "modulator", "backbone", "injection")}
    return (
        tree
        | same
        | {
            "training": tree["training"] | {"condition": "none", "stages": stages},
            "evaluation": _asked(tree, base, "host", "text_only"),
        }
    )


def _gaze_free(sweep: Sweep, run: Planned, base: Mapping[str, Any]) -> dict[str, Any] | None:
    """The same modulation, trained and asked with blank signals, of which every encoder makes
    exactly 0: the base's encoder serves.
    """
    if run.recipe.injection.empty == "none":
        _refuse_for_base(
            sweep,
            run,
            "gaze_free",
            "with injection.empty `none` a blank signal adds nothing that could be trained",
        )
        return None
    tree = json.loads(run.recipe.model_dump_json())
    training = tree["training"] | {"condition": "blank"}
    return tree | {
        "encoder": base["encoder"],
        "training": training,
        "evaluation": _asked(tree, base, "none", "host", "text_only"),
    }


def _refuse_for_base(sweep: Sweep, run: Planned, kind: str, reason: str) -> None:
    """Raise for the base; other runs simply have no such companion."""
    if run.role == BASE:
        raise RecipeError(
            f"Sweep {sweep.name}: {kind} cannot stand beside {run.name}: {reason}. Take it out of"
            " `companions`."
        )


def _asked(tree: Mapping[str, Any], base: Mapping[str, Any], *allowed: str) -> dict[str, Any]:
    """The evaluation of a companion: of the base's conditions those that mean something there."""
    return tree["evaluation"] | {
        "conditions": [c for c in base["evaluation"]["conditions"] if c in allowed],
        "inputs": {},
    }
