"""``modulate data check``: check the files, splits and answers of any data set.

Heavy modules are imported when a command runs.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from modulate.cli.arguments import AsJson
from modulate.cli.output import echo_json
from modulate.errors import DataError, RecipeError

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console

    from modulate.config.sections import Sampling
    from modulate.interfaces.components import Dataset
    from modulate.interfaces.inspection import DataFinding, FindingsTable, Inspection

Model = TypeVar("Model", bound="BaseModel")

MOST_ROWS = 20
"""Rows of a finding that are printed; --json prints all."""


def group() -> typer.Typer:
    """Return the group ``data``: a new one each time, since plugins add commands to it."""
    data = typer.Typer(
        name="data",
        help="Check data sets, and what plugins do with the files of theirs.",
        no_args_is_help=True,
    )
    # With a callback ``check`` stays a subcommand: typer drops the level of a lone command.
    data.callback()(lambda: None)
    data.command()(check)
    return data


def check(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE-OR-DATA",
            help="A recipe (name or file), or data: a table, or a folder of a known layout.",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Changes to the recipe: sampling.max_frames=3, data.params.seconds=30 …",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help=(
                "For data: recipe with the sampling and the parameters of the data set; a shipped"
                " name or a file."
            )
        ),
    ] = None,
    frames_per_step: Annotated[
        int, typer.Option(min=1, help="Frames that the host merges into one time step; Qwen-VL: 2.")
    ] = 2,
    decode: Annotated[
        bool,
        typer.Option(
            "--decode",
            help="Decode the last frame that is needed of each video, too: finds cut-off files.",
        ),
    ] = False,
    prepare: Annotated[
        bool,
        typer.Option("--prepare", help="First let the data set generate or download its files."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check data: rows, videos, windows, signals, ids, leaks between splits, options, answers.

    Every bad row is named. Exits with 1 if something would fail in training.
    """
    from modulate.checks.data_check import check_data
    from modulate.cli.progress import display
    from modulate.data.sampled_steps import SampledSteps

    source = _opened(target, recipe, overrides or [])
    with display() as shown:
        if prepare:
            source.dataset.prepare()
        inspection = check_data(
            source.dataset,
            SampledSteps(source.sampling, frames_per_step),
            source.kinds,
            decode,
            lambda: shown.advance("files", 1, None),
        )
    if source.note:
        inspection.add("info", source.note)
    if as_json:
        echo_json({"data": source.name, **inspection.as_json()})
    else:
        _print(source.name, inspection)
    if not inspection.ok:
        raise typer.Exit(1)


class _Source:
    """A data set to check, the sampling, the kinds of signal that are read, and a note on both."""

    def __init__(
        self,
        name: str,
        dataset: "Dataset",
        sampling: "Sampling",
        kinds: tuple[str, ...] = (),
        note: str = "",
    ) -> None:
        self.name = name
        self.dataset = dataset
        self.sampling = sampling
        self.kinds = kinds
        self.note = note


def _opened(target: str, recipe: str | None, overrides: list[str]) -> _Source:
    """Open a recipe's data set, or data by the data set that recognizes them."""
    from modulate.config.recipe import load_recipe, recipe_paths
    from modulate.interfaces.multi_signal import kinds_of

    path = Path(target).expanduser()
    is_data = path.is_dir() or (path.is_file() and path.suffix not in (".yaml", ".yml"))
    if not is_data:
        if recipe is not None:
            raise RecipeError(f"--recipe is for data; {target!r} is no folder and no table.")
        found = load_recipe(target, overrides)
        kinds = tuple(kinds_of(found.signal))
        return _Source(found.name, found.data.build("dataset"), found.sampling, kinds)
    name, dataset_class, params = _recognized(path)
    usual = dataset_class.usual_recipe
    chosen = recipe or usual
    if chosen is None:
        return _by_default(path, dataset_class, params, overrides)
    if recipe is None and not Path(chosen).is_file() and chosen not in recipe_paths():
        note = f"There is no recipe {chosen!r} here: default parameters, and the sampling given."
        return _by_default(path, dataset_class, params, overrides, note)
    return _with_recipe(path, (name, dataset_class, params), chosen, overrides)


_Recognized = tuple[str, "type[Dataset]", "BaseModel"]


def _recognized(path: Path) -> _Recognized:
    """Return the data set whose files lie at ``path``. Raises :class:`DataError`."""
    from modulate import plugins

    found = []
    for name, dataset_class in plugins.registry().loadable("dataset"):
        params = dataset_class.recognize(path)
        if params is not None:
            found.append((name, dataset_class, params))
    if len(found) == 1:
        return found[0]
    if found:
        names = " and ".join(name for name, _, _ in found)
        raise DataError(f"{path} can be read as {names}; check a recipe that names one of them.")
    raise DataError(
        f"No data set recognizes the files in {path}. Check a recipe that names it: `modulate data"
        " check RECIPE`."
    )


def _by_default(
    path: Path,
    dataset_class: "type[Dataset]",
    params: "BaseModel",
    overrides: list[str],
    note: str = "",
) -> _Source:
    """Open data without a recipe; overrides change the default sampling and parameters."""
    from modulate.config.recipe import override
    from modulate.config.sections import Sampling

    tree: dict[str, Any] = {}
    for text in overrides:
        override(tree, text)
    sampling = _valid(Sampling, "sampling", tree.get("sampling", {}))
    changed = {
        **params.model_dump(exclude_unset=True),
        **tree.get("data", {}).get("params", {}),
    }
    final = _valid(type(params), "data.params", changed)
    return _Source(str(path), _built(dataset_class, final), sampling, (), note)


def _with_recipe(
    path: Path, recognized: "_Recognized", recipe: str, overrides: list[str]
) -> _Source:
    """Open data with a recipe's sampling, and with its parameters if they are of the same kind."""
    from modulate.config.recipe import load_recipe
    from modulate.interfaces.multi_signal import kinds_of

    name, dataset_class, own = recognized
    found = load_recipe(recipe, overrides)
    cls, params = found.data.resolved("dataset")
    if issubclass(cls, dataset_class):
        both = {
            **params.model_dump(exclude_unset=True),
            **own.model_dump(exclude_unset=True),
        }
        dataset = cls(type(params).model_validate(both))
        return _Source(str(path), dataset, found.sampling, tuple(kinds_of(found.signal)))
    note = (
        f"The recipe {recipe!r} is of the data set {found.data.name!r}: its sampling is used, and"
        f" the default parameters of {name!r}."
    )
    return _Source(str(path), _built(dataset_class, own), found.sampling, (), note)


def _built(dataset_class: "type[Dataset]", params: "BaseModel") -> "Dataset":
    build: Any = dataset_class
    built: Dataset = build(params)
    return built


def _valid(model: "type[Model]", where: str, given: dict[str, Any]) -> "Model":
    from pydantic import ValidationError

    from modulate.config.recipe import explain

    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise RecipeError(explain(error, where, model)) from error


# --- the terminal


def _print(name: str, inspection: "Inspection") -> None:
    from rich.console import Console

    console = Console()
    console.width = max(console.width, 144)
    console.print(f"{name}: {inspection.figures['sampling']}", highlight=False, markup=False)
    for table in inspection.tables:
        _print_table(console, table)
    counts = ", ".join(f"{n} {split}" for split, n in inspection.figures["samples"].items())
    console.print(f"Samples: {counts or 'none'}.", highlight=False, markup=False)
    for finding in inspection.findings:
        _print_finding(console, finding)
    errors = sum(finding.level == "error" for finding in inspection.findings)
    console.print(
        (
            "Nothing here would fail in training."
            if inspection.ok
            else f"{errors} error{'s' if errors > 1 else ''}."
        ),
        highlight=False,
    )


def _print_table(console: "Console", found: "FindingsTable") -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(found.title), title_justify="left", box=box.SIMPLE)
    for place, column in enumerate(found.columns):
        table.add_column(column, justify="right" if place else "left", no_wrap=True)
    for row in found.rows:
        table.add_row(*map(escape, row))
    console.print(table)
    if found.note:
        console.print(found.note, highlight=False, markup=False, soft_wrap=True)


def _print_finding(console: "Console", finding: "DataFinding") -> None:
    style = {"error": "bold red", "warning": "yellow", "info": ""}[finding.level]
    console.print(
        f"{finding.level}: {finding.text}",
        style=style,
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    rows = list(finding.rows[:MOST_ROWS])
    if len(finding.rows) > MOST_ROWS:
        rows.append(f"… and {len(finding.rows) - MOST_ROWS} more; --json prints all")
    for row in rows:
        console.print(f"  {row}", markup=False, highlight=False, soft_wrap=True)
