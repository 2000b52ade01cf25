"""A check of a data set's files: what `modulate data check` finds, with the data set's help.

Imports no torch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from modulate.interfaces.sample import Sample
from modulate.interfaces.visual_grid import VisualGrid

Level = Literal["error", "warning", "info"]


def place_of(sample: Sample) -> str:
    """Return how findings name a sample: ``extra["source"]``, such as file and line, or its id."""
    source = sample.extra.get("source")
    return source if isinstance(source, str) else sample.id


@dataclass(frozen=True)
class DataFinding:
    """One result of a check of data.

    An ``error`` stops or spoils a training, a ``warning`` is probably not intended, an ``info`` is
    worth knowing.

    Attributes:
        text: what was found, with its count.
        rows: the rows concerned, each with its file and line where they are known.
    """

    level: Level
    text: str
    rows: tuple[str, ...] = ()


@dataclass(frozen=True)
class FindingsTable:
    """A table of what was found; cells are text, and the first column names its row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass
class Inspection:
    """A check of one data set, to which the data set adds what only it can know.

    Attributes:
        steps: returns the time steps of a clip under the recipe's sampling, with one token each:
            ``steps(window, training)``.
        training_differs: whether training samples clips in another way than an evaluation.
        advance: called once for each file that was read, for a progress bar.
        findings: what was found.
        tables: tables to show before the findings.
        figures: numbers behind them, by name, as plain values for JSON.
    """

    steps: Callable[[tuple[float, float], bool], VisualGrid]
    training_differs: bool = False
    advance: Callable[[], object] = lambda: None
    findings: list[DataFinding] = field(default_factory=list)
    tables: list[FindingsTable] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing was found that would fail in training."""
        return all(finding.level != "error" for finding in self.findings)

    def add(self, level: Level, text: str, rows: Sequence[str] = ()) -> None:
        """Add a finding, unless the same one is there already."""
        finding = DataFinding(level, text, tuple(rows))
        if finding not in self.findings:
            self.findings.append(finding)

    def as_json(self) -> dict[str, Any]:
        """Return the findings and figures as plain values."""
        found: list[Mapping[str, Any]] = [
            {"level": finding.level, "text": finding.text, "rows": list(finding.rows)}
            for finding in self.findings
        ]
        return {"ok": self.ok, **self.figures, "findings": found}
