"""What a check of a StreamGaze tree finds."""

from dataclasses import asdict, dataclass, field

from modulate.interfaces.inspection import FindingsTable, Inspection, Level


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
    ``split_of``: the split of each video's stem, if there are splits.
    """

    tasks: dict[str, TaskFigures] = field(default_factory=dict)
    splits: dict[str, int] = field(default_factory=dict)
    conventions: dict[str, int] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)
    findings: list[tuple[Level, str]] = field(default_factory=list)
    split_of: dict[str, str] = field(default_factory=dict)

    def add(self, level: Level, text: str) -> None:
        """Add a finding."""
        self.findings.append((level, text))

    def add_to(self, inspection: Inspection) -> None:
        """Add everything to a check of the data."""
        inspection.tables.append(self.table())
        for title, counts in (
            ("Videos by split", self.splits),
            ("Key conventions", self.conventions),
        ):
            if counts:
                found = ", ".join(f"{name} {n}" for name, n in counts.items())
                inspection.add("info", f"{title}: {found}.")
        for level, text in self.findings:
            inspection.add(level, text)
        figures = asdict(self)
        for name in ("tasks", "splits", "conventions", "unknown"):
            inspection.figures[name] = figures[name]

    def table(self) -> FindingsTable:
        """Return the figures of all tasks as a table."""
        return FindingsTable(
            "Tasks", COLUMNS, tuple(_row(name, task) for name, task in self.tasks.items()), NOTE
        )


COLUMNS = (
    "task",
    "questions",
    "videos",
    "missing",
    "seconds",
    "beyond",
    "fixations",
    "none",
    "midpoint",
    "overlap",
)

NOTE = (
    "seconds: shortest, median and longest video; beyond: questions after their video's end;"
    " fixations: median number in a question's clip; none: questions without any; midpoint,"
    " overlap: questions whose gaze is active at some sampled step."
)


def _row(name: str, task: TaskFigures) -> tuple[str, ...]:
    return (
        name,
        f"{task.questions:,}",
        str(task.videos),
        str(task.missing),
        " / ".join(f"{s:.0f}" for s in task.seconds) if task.seconds else "–",
        str(task.beyond),
        "–" if task.fixations is None else f"{task.fixations:g}",
        _percent(task.without),
        *(_percent(task.active.get(mode)) for mode in ("midpoint", "overlap")),
    )


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
