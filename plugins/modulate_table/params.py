"""The parameters of a table as a data set: files, columns, windows and splits. Imports no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, model_validator

from modulate import plugins
from modulate.errors import near_matches
from modulate.interfaces.components import Params
from modulate.interfaces.params import LocalPath

SPLITS = ("train", "val", "test")

UNUSED = "unused"
"""In place of a split: the row is left out on purpose."""

SPLIT_NAMES: Mapping[str, str] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    UNUSED: UNUSED,
}
"""Names of splits in tables, in lower case, and the split that each means."""

LIST_FIELDS = ("videos", "images", "options", "answers")
"""Fields whose cells hold several values."""

FIELDS = (
    "id",
    "task",
    "question",
    *LIST_FIELDS,
    "answer",
    "video",
    "image",
    "start",
    "end",
    "time",
    "split",
)
"""Fields of a row. The name of a kind of signal is a field, too: its file."""

SplitName = Literal["train", "val", "test"]

Source = str | tuple[str, ...] | None
"""Where a field comes from: a column, a text with columns in braces, columns, or nowhere."""


def _known_fields(columns: dict[str, Source]) -> dict[str, Source]:
    known = {*FIELDS, *plugins.registry().names("signal")}
    for name, column in columns.items():
        if name not in known:
            raise ValueError(
                f"{name!r} is neither a field of a row nor a kind of signal."
                f" {near_matches(name, known)}"
            )
        if isinstance(column, tuple) and name != "options":
            raise ValueError(f"{name!r} takes one column; only options may be in several")
        if column in ("", ()):
            raise ValueError(f"{name!r} names no column")
    return columns


class Split(Params):
    """How rows are assigned to training, validation and test.

    Rows that share a video, a picture or a group always stay together, unless a column, the files
    or the data set itself assign them.
    """

    by: Literal["given", "seed", "hash"] | None = Field(
        None,
        description=(
            "given: by the column `split`, by `files`, or by the data set's own splits. seed:"
            " groups are shuffled and dealt out by `shares`. hash: by a hash of the group's name,"
            " so that new rows never move old ones, and shares are met on average. If absent:"
            " given where the table has splits, else seed"
        ),
    )
    groups: tuple[str, ...] = Field(
        (),
        description=(
            "columns whose rows of the same value stay in one split, such as participant; rows of"
            " the same video or picture always do"
        ),
    )
    shares: dict[SplitName, PositiveFloat] = Field(
        {"train": 0.7, "val": 0.15, "test": 0.15},
        description="share of the groups that each split gets; a split left out gets none",
    )
    seed: NonNegativeInt = Field(0, description="seed of `by: seed` and `by: hash`")
    names: dict[str, Literal["train", "val", "test", "unused"]] = Field(
        {},
        description=(
            "what values of the column `split` mean, beside train, val, validation, dev and test;"
            " unused: left out on purpose"
        ),
    )

    @model_validator(mode="after")
    def _have_an_effect(self) -> "Split":
        if abs(sum(self.shares.values()) - 1) > 1e-6:
            raise ValueError(f"`shares` must add up to 1; got {sum(self.shares.values()):g}")
        if self.by in ("seed", "hash") and self.names:
            raise ValueError(f"`names` has no effect with by: {self.by}")
        return self


class TableParams(Params):
    """Where the rows are, what their columns mean, and how they are split."""

    root: Annotated[Path, LocalPath()] = Field(
        Path(),
        description=(
            "folder of the table, and of the files that it names. Without `files` and `hub`, it"
            " holds one table, or is a folder that the library `datasets` reads or has saved"
        ),
    )
    files: str | tuple[str, ...] | dict[str, str | tuple[str, ...]] | None = Field(
        None,
        description=(
            "table, or tables, in `root`: .csv, .tsv, .jsonl, .json or .parquet; by split as"
            " {train: …, test: …}"
        ),
    )
    hub: str | None = Field(
        None, description="data set on the Hugging Face hub, owner/name, instead of `files`"
    )
    config: str | None = Field(
        None, description="configuration of the data set that `datasets` reads"
    )
    revision: str | None = Field(None, description="revision of `hub`: a branch, tag or commit")
    columns: Annotated[dict[str, Source], AfterValidator(_known_fields)] = Field(
        {},
        description=(
            f"column of each field: {', '.join(FIELDS)}, and kinds of signal such as gaze. A text"
            " with {columns} in braces is filled in, as in video: videos/{clip}.mp4. `options` may"
            " name several columns. A field that is left out has the column of its own name, if"
            " there is one; null: the field is not read"
        ),
    )
    constants: dict[str, str | float | tuple[str, ...]] = Field(
        {}, description="fields with one value for all rows, such as task: kitchen"
    )
    groups: tuple[str, ...] = Field(
        (), description="columns that group the rows for statistics, such as participant"
    )
    separator: str = Field(
        "|", min_length=1, description="between values of one cell: cup|knife|plate"
    )
    delimiter: str | None = Field(
        None,
        min_length=1,
        max_length=1,
        description="between cells of a .csv file; by default a comma",
    )
    answers_are: Literal["text", "letter", "index", "index_from_1"] | None = Field(
        None,
        description=(
            "how `answer` names the right option: by its text, by its letter, or by its index from"
            " 0 or 1; found from the rows if absent, and refused where several ways differ"
        ),
    )
    seconds: PositiveFloat | None = Field(
        None,
        description=(
            "length (s) of windows that end at the column `time`; from the video's start if absent"
        ),
    )
    split: Split = Field(Split(), description="how rows are split")
    allow_shared_videos: bool = Field(
        False, description="accept splits that show the same video or picture, or share a group"
    )
    allow_outside: bool = Field(
        False,
        description=(
            "accept absolute paths, and paths that leave `root`, in the table: only for tables of"
            " your own"
        ),
    )
    skip_bad_rows: bool = Field(
        False,
        description=(
            "leave out rows that cannot be used, instead of refusing the table; `modulate data"
            " check` and the run's record count them"
        ),
    )

    @model_validator(mode="after")
    def _agree(self) -> "TableParams":
        if self.hub is not None and self.files is not None:
            raise ValueError("the rows come from `files` or from `hub`, not from both")
        if self.hub is None and self.revision is not None:
            raise ValueError("`revision` has no effect without `hub`")
        twice = sorted(self.columns.keys() & self.constants.keys())
        if twice:
            raise ValueError(f"{twice[0]!r} is in `columns` and in `constants`; keep one")
        _known_fields(dict.fromkeys(self.constants, "x"))
        if isinstance(self.files, dict):
            for name in self.files:
                if name.lower() not in {**SPLIT_NAMES, **self.split.names}:
                    raise ValueError(
                        f"`files` are by split: {name!r} is none. {near_matches(name, SPLIT_NAMES)}"
                    )
        return self
