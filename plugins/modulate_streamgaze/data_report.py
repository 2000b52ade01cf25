"""The report of `modulate data check`."""

from dataclasses import asdict, dataclass, field
from typing import Any

from modulate.checks.findings import Finding, Level


@dataclass
class TaskFigures:
    """Figures of one task; proactive questions count once for each test point.

    ``seconds``: (shortest, median, longest) video. ``beyond``: questions after the end of their
    video. ``clips``: questions with readable gaze. Of these clips, ``fixations`` is the median
    number of fixations, ``without`` the share without any, and ``active`` the share whose gaze is
    active at some step, by mode. ``active_training``: the same with the frame cap of training, if
    it has one.
    """

    questions: int = 0
    videos: int = 0
    missing: int = 0
    seconds: tuple[float, float, float] | None = None
    beyond: int = 0
    clips: int = 0
    fixations: float | None = None
    without: float | None = None
    active: dict[str, float] = field(default_factory=dict)
    active_training: dict[str, float] = field(default_factory=dict)


@dataclass
class DataReport:
    """Findings and figures of a data tree.

    ``conventions`` and ``unknown`` count keys of the question files, ``splits`` counts videos.
    """

    root: str
    sampling: str
    tasks: dict[str, TaskFigures] = field(default_factory=dict)
    splits: dict[str, int] = field(default_factory=dict)
    conventions: dict[str, int] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether training would not fail on this data."""
        return all(f.level != "error" for f in self.findings)

    def add(self, level: Level, text: str) -> None:
        """Add a finding."""
        self.findings.append(Finding(level, text))

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {"ok": self.ok, **asdict(self)}
