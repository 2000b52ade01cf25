"""One row of a table as a question about clips. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modulate.errors import DataError, shown
from modulate.interfaces.prompt import without_letters
from modulate.interfaces.sample import SampleClip
from modulate_table import cells
from modulate_table.columns import Columns
from modulate_table.media import Files
from modulate_table.params import SPLIT_NAMES, TableParams
from modulate_table.readers import Row

DEFAULT_TASK = "questions"


@dataclass
class Question:
    """A row that could be read; which option is right is found over all rows later.

    Attributes:
        place: file and line.
        given: cell that names the right option; None for free text.
        had_letters: whether the options began with their letters, which were removed.
        units: values of the columns whose rows stay in one split.
        split: split that the row itself names, None if it names none.
        answer: index of the right option, once it is known.
    """

    place: str
    id: str
    task: str
    clips: tuple[SampleClip, ...]
    question: str
    options: tuple[str, ...]
    given: Any
    had_letters: bool
    answers: tuple[str, ...]
    groups: dict[str, str]
    units: dict[str, str]
    split: str | None
    answer: int | None = None


class RowReader:
    """Reads rows by the mapping of a recipe.

    Args:
        params: separators, the length of windows, groups.
        columns: where each field comes from.
        files: finds the files that rows name.

    Raises:
        DataError: rows have no question, nothing to show, or a field in two columns.
    """

    def __init__(self, params: TableParams, columns: Columns, files: Files) -> None:
        self.params = params
        self.columns = columns
        self.files = files
        columns.require("question")
        columns.require("video", "videos", "image", "images")
        columns.require("answer", "answers")
        columns.refuse_both("time", "start")
        columns.refuse_both("time", "end")
        columns.refuse_both("video", "videos")
        columns.refuse_both("image", "images")
        if params.seconds is not None and not columns.has("time"):
            raise DataError(
                "`seconds` is the length of windows that end at the column `time`, which the table"
                " lacks; name it: columns: {time: …}."
            )

    def read(self, row: Row) -> Question:
        """Return the row's question.

        Raises :class:`DataError`, :class:`~modulate.errors.MissingFileError` or
        :class:`~modulate.errors.VideoError` with a reason that does not name the row.
        """
        options, had_letters = self._options(row)
        given, answers = self._answers(row, options)
        return Question(
            row.place,
            self._optional(row, "id", row.key),
            self._optional(row, "task", DEFAULT_TASK),
            self._clips(row),
            cells.text(self._cell(row, "question"), self.columns.source("question")),
            options,
            given,
            had_letters,
            answers,
            _groups(row, self.params.groups),
            _groups(row, self.params.split.groups),
            self._split(row),
        )

    def _cell(self, row: Row, name: str) -> Any:
        return self.columns.get(name, row.values)

    def _optional(self, row: Row, name: str, default: str) -> str:
        # A column that is empty in some rows is a gap, not a wish for the default.
        if not self.columns.has(name):
            return default
        return cells.text(self._cell(row, name), self.columns.source(name))

    def _split(self, row: Row) -> str | None:
        if self.params.split.by in ("seed", "hash"):
            return None
        if row.split is None and not self.columns.has("split"):
            return None
        named = self.columns.source("split")
        name = cells.text(row.split if row.split is not None else self._cell(row, "split"), named)
        names = {**SPLIT_NAMES, **self.params.split.names}
        found = names.get(name) or names.get(name.lower())
        if found is None:
            raise DataError(
                f"{named} must be train, val, test or unused; got {shown(name)}. split: {{names:"
                " {…}} says what other names mean"
            )
        return found

    # --- what is shown

    def _clips(self, row: Row) -> tuple[SampleClip, ...]:
        files = [*self._files(row, "video", "videos"), *self._files(row, "image", "images")]
        if not files:
            raise DataError("it names no video and no image")
        count = len(files)
        starts = self._times(row, "start", count)
        ends = self._times(row, "time" if self.columns.has("time") else "end", count)
        signals = self._signals(row, count)
        return tuple(
            SampleClip(file, self._window(file, is_image, start, end), own, is_image)
            for (file, is_image), start, end, own in zip(files, starts, ends, signals, strict=True)
        )

    def _files(self, row: Row, one: str, several: str) -> list[tuple[Path, bool]]:
        """Return one file or several, each with whether it is a picture."""
        name = several if self.columns.has(several) else one
        value = self._cell(row, name)
        if value is None:
            return []
        named = self.columns.source(name)
        items = (value,) if name == one else cells.values(value, named, self.params.separator)
        return [(self.files.find_media(item, named, one), one == "image") for item in items]

    def _per_clip(self, row: Row, name: str, count: int) -> tuple[Any, ...]:
        """Return the field's values for each clip, None where it is empty."""
        value = self._cell(row, name)
        if value is None:
            return (None,) * count
        if count == 1 and not isinstance(value, list | tuple):
            return (value,)
        named = self.columns.source(name)
        found = cells.values(value, named, self.params.separator)
        if len(found) != count:
            raise DataError(f"{named} has {len(found)} values, but there are {count} clips")
        return found

    def _times(self, row: Row, name: str, count: int) -> list[float | None]:
        named = self.columns.source(name)
        value = self._cell(row, name)
        if name == "time" and value is None:
            raise DataError(f"{named} is empty")
        if isinstance(value, int | float):
            return [cells.seconds(value, named)] * count
        found = self._per_clip(row, name, count)
        return [None if item is None else cells.seconds(item, named) for item in found]

    def _window(
        self, file: Path, is_image: bool, start: float | None, end: float | None
    ) -> tuple[float, float]:
        if is_image and start is None and end is None:
            return (0.0, 0.0)
        if is_image and end is None:
            raise DataError(f"{file.name}: the window of a picture needs its end, too")
        last = self.files.end(file) if end is None else end
        if start is None and end is not None and self.params.seconds is not None:
            start = max(0.0, end - self.params.seconds)
        first = start or 0.0
        if not last > first:
            raise DataError(
                f"the window of {file.name} must end after it starts; got {first:g} to {last:g} s"
            )
        return first, last

    def _signals(self, row: Row, count: int) -> list[dict[str, Path]]:
        found: list[dict[str, Path]] = [{} for _ in range(count)]
        for kind in self.columns.kinds:
            named = self.columns.source(kind)
            items = self._per_clip(row, kind, count)
            if all(item is None for item in items):
                raise DataError(f"{named} is empty")
            for own, item in zip(found, items, strict=True):
                if item is not None:
                    own[kind] = self.files.find(item, named)
        return found

    # --- what is asked

    def _options(self, row: Row) -> tuple[tuple[str, ...], bool]:
        value = self._cell(row, "options")
        if value is None:
            return (), False
        named = self.columns.source("options")
        found = cells.texts(value, named, self.params.separator)
        if len(found) < 2:
            raise DataError(
                f"{named} must hold two options or more; got {shown(found[0])}. Options are"
                f" separated by {self.params.separator!r} (`separator`), or are a JSON list"
            )
        options, had_letters = without_letters(found)
        if len(set(options)) < len(options):
            raise DataError(f"{named} holds the same option twice: {shown(options)}")
        if not all(options):
            raise DataError(f"{named} holds an option that is only a letter: {shown(found)}")
        return options, had_letters

    def _answers(self, row: Row, options: tuple[str, ...]) -> tuple[Any, tuple[str, ...]]:
        """Return the cell that names the right option, and the accepted answers of free text."""
        given = self._cell(row, "answer")
        several = self._cell(row, "answers")
        if options:
            if several is not None:
                raise DataError("it has `options` and `answers`; answers are for free text")
            if given is None:
                raise DataError(f"{self.columns.source('answer')} is empty")
            return given, ()
        found: tuple[str, ...] = ()
        if given is not None:
            found = (cells.text(given, self.columns.source("answer")),)
        if several is not None:
            named = self.columns.source("answers")
            found += cells.texts(several, named, self.params.separator)
        if not found:
            raise DataError("it has no answer")
        return None, tuple(dict.fromkeys(found))


def _groups(row: Row, columns: tuple[str, ...]) -> dict[str, str]:
    return {column: cells.text(row.values.get(column), column) for column in columns}
