"""The tables of a report, made of its figures."""

from collections.abc import Sequence
from pathlib import Path

from modulate.config.sections import BUILT_IN
from modulate.interfaces.components import Reference
from modulate.interfaces.multi_signal import controls_of
from modulate.interfaces.signal import COMMON_CONTROLS
from modulate.report.figures import Comparison, Figures, Score, Scores, Test, adjust, scores_of
from modulate.report.recipes import ABSENT, value_text
from modulate.report.runs import ROLES, Companion, Entry, Recorded
from modulate.report.table import NONE, Table, interval, p_value, percent, points

TRAINED = {"signal": "its signal", "blank": "a blank signal", "none": "no signal (LoRA only)"}
TESTED = (*ROLES.values(), *COMMON_CONTROLS)
"""What a signal run is compared with task by task: its companions, and the controls that every kind
of signal has.
"""


def runs_table(entries: Sequence[Entry], figures: Sequence[Figures]) -> Table:
    """Return what each run is: where it lies, its parts and its training."""
    rows = []
    for entry, own in zip(entries, figures, strict=True):
        r = entry.recipe
        layers = ", ".join(map(str, r.injection.layers))
        parts = (
            f"{r.encoder.name} → {r.modulator.name}, layers {layers}, {r.backbone.name}"
            if entry.condition != "none"
            else NONE
        )
        lora = f"rank {r.lora.rank}" if r.lora else "none"
        steps = " / ".join(
            str(NONE if run.training.steps is None else run.training.steps) for run in entry.runs
        )
        rows.append(
            (
                entry.name,
                seeds_text(entry.seeds),
                TRAINED[entry.condition],
                r.host.name,
                parts,
                lora,
                r.data.name,
                steps,
                str(own.own.overall.n),
            )
        )
    columns = (
        "Run",
        "Seeds",
        "Trained with",
        "Host",
        "Modulation",
        "LoRA",
        "Data",
        "Steps",
        "Answers",
    )
    notes = tuple(
        f"{entry.name}: {'; '.join(_made_by(run) for run in entry.runs)}." for entry in entries
    )
    return Table("runs", "What each run is made of", columns, tuple(rows), notes, text_columns=7)


def _made_by(run: Recorded) -> str:
    """Where a run lies, and what made it."""
    environment = run.run.read_environment()
    git = environment.git
    version = environment.versions.get("modulate")
    commit = (
        f" at {git.commit[:10]}{', modified' if git.modified else ''}" if git and git.commit else ""
    )
    return f"{run.run.folder}" + (f" (modulate {version}{commit})" if version else "")


def summary(figures: Sequence[Figures]) -> Table:
    """Return each run's accuracy, and for signal runs the differences that say whether it is the
    signal.
    """
    rows = []
    for own in figures:
        overall = own.own.overall
        entry = own.entry
        cells = (
            [_beside(own, role) for role in ROLES.values()]
            if entry.condition == "signal"
            else ["", ""]
        )
        shuffled = next((c for c in own.controls if c.second == "shuffled"), None)
        last = (
            (_difference(shuffled) if shuffled else "not evaluated")
            if entry.condition == "signal"
            else ""
        )
        rows.append(
            (
                entry.name,
                TRAINED[entry.condition],
                f"{percent(overall.accuracy)} {interval(overall.low, overall.high)}",
                *cells,
                last,
            )
        )
    columns = (
        "Run",
        "Trained with",
        "Accuracy, %",
        "− LoRA only",
        "− trained blank",
        "− shuffled signal",
    )
    notes = (
        (
            "Accuracy: unweighted mean over the tasks. Brackets: 95 % bootstrap interval, whole"
            " videos resampled. Differences are paired, in points. A gain over LoRA alone may come"
            " from the modulator's second look at the frames; what exceeds the run trained with a"
            " blank signal and the shuffled signal comes from the signal."
        ),
    )
    return Table(
        "summary",
        "Accuracy, and what of it is beyond the runs and the control beside it",
        columns,
        tuple(rows),
        notes,
        text_columns=2,
    )


def _beside(own: Figures, role: str) -> str:
    companion, comparison = next((c, t) for c, t in own.companions if c.role == role)
    if comparison is None:
        return (
            "no LoRA in the recipe"
            if companion.entry is None and own.entry.recipe.lora is None and role == ROLES["none"]
            else "no such run given"
        )
    return _difference(comparison)


def _difference(comparison: Comparison) -> str:
    t = comparison.overall
    return (
        comparison.why
        if t is None
        else f"{points(t.difference)} {interval(t.low, t.high, signed=True)}"
    )


def verdict(own: Figures) -> str:
    """Return one sentence on whether a signal run's accuracy is from its signal, as far as what was
    evaluated can say.
    """
    missing = [
        c.role
        for c, _ in own.companions
        if c.entry is None and (own.entry.recipe.lora is not None or c.role != ROLES["none"])
    ]
    tests = {
        "the run trained with a blank signal": next(
            t for c, t in own.companions if c.role == ROLES["blank"]
        )
    }
    tests |= {f"the control {c.second}": c for c in own.controls if c.second in COMMON_CONTROLS}
    known = {
        name: c.overall
        for name, c in tests.items()
        if c is not None and c.overall is not None and c.overall.low is not None
    }
    unclear = [name for name, t in known.items() if t.low is not None and t.low <= 0]
    if unclear:
        text = (
            "Not shown to use its signal: its accuracy is not clearly above"
            f" {' and '.join(unclear)}."
        )
    elif known:
        text = f"Clearly above {', '.join(known)}: the accuracy depends on this clip's own signal."
    else:
        text = (
            "Whether it uses its signal cannot be said: neither a shuffled or blank control nor a"
            " run trained with a blank signal has an interval here."
        )
    return text + (
        f" No run was given for comparison that is: {', '.join(missing)}." if missing else ""
    )


def label(task: str, reference: Reference) -> str:
    """Return a task's short name, or its own."""
    return reference.labels.get(task, task)


def ordered(tasks: Sequence[str], reference: Reference) -> list[str]:
    """Return tasks in the order of the reference's labels, those that it does not name behind."""
    return [t for t in reference.labels if t in tasks] + [
        t for t in tasks if t not in reference.labels
    ]


def table1(figures: Sequence[Figures], reference: Reference) -> Table:
    """Return accuracies by task: our runs, and published ones where the data set has any."""
    tasks = ordered(list(dict.fromkeys(t for own in figures for t in own.own.tasks)), reference)
    published = {t for row in reference.rows for t in row.accuracies}
    partial = bool(reference.rows) and published != set(tasks)
    rows: list[tuple[str, ...] | str] = (
        ["Ours: own test split, with 95 % interval of the mean"] if reference.rows else []
    )
    for own in figures:
        s = own.own
        cells = [percent(s.tasks[t].accuracy) if t in s.tasks else NONE for t in tasks]
        mean = percent(s.overall.accuracy) if len(s.tasks) == len(tasks) else NONE
        rows.append(
            (
                _title(own.entry),
                *cells,
                mean,
                interval(s.overall.low, s.overall.high),
                *([NONE] if partial else []),
            )
        )
    if reference.rows:
        rows.append(f"Published: {'; '.join(dict.fromkeys(row.source for row in reference.rows))}")
    for row in reference.rows:
        cells = [percent(row.accuracies.get(t)) for t in tasks]
        known = [row.accuracies[t] for t in tasks if t in row.accuracies]
        mean = percent(sum(known) / len(tasks)) if len(known) == len(tasks) else NONE
        rows.append(
            (
                row.name,
                *cells,
                mean if partial else percent(row.overall),
                NONE,
                *([percent(row.overall)] if partial else []),
            )
        )
    columns = (
        "Run",
        *(label(t, reference) for t in tasks),
        "mean",
        "95 % interval",
        *([f"mean of all {len(published)}"] if partial else []),
    )
    names = "; ".join(f"{reference.labels[t]} {t}" for t in tasks if t in reference.labels)
    notes = (
        [f"Not comparable without care: {' '.join(reference.notes)}"] if reference.notes else []
    ) + ([f"Tasks: {names}."] if names else [])
    if reference.rows:
        counts = ", ".join(
            f"{label(t, reference)} {_n(own, t)}" for own in figures[:1] for t in tasks
        )
        notes.append(
            f"Ours are measured on n questions, by task: {counts} ({figures[0].entry.name}, all"
            " seeds); published rows come without counts."
        )
    return Table("table1", "Table 1: accuracy by task, %", columns, tuple(rows), tuple(notes))


def _n(own: Figures, task: str) -> str:
    return str(own.own.tasks[task].n) if task in own.own.tasks else NONE


def _title(entry: Entry) -> str:
    return entry.name if entry.condition == "signal" else f"{entry.name} ({ROLES[entry.condition]})"


def tasks_table(own: Figures, reference: Reference) -> Table:
    """Return a run's accuracy task by task with exact counts, beside its companions and the
    controls.
    """
    tasks = ordered(list(own.own.tasks), reference)
    beside = [(c.role, c.entry) for c, t in own.companions if c.entry is not None and t is not None]
    others: list[tuple[str, Scores]] = [
        (name, s) for name, s in own.scores.items() if name != own.entry.condition
    ]
    rows = []
    companions = {role: _scores_of_companion(own, role) for role, _ in beside}
    for task in [*tasks, None]:
        s = _at(own.own, task)
        assert s is not None
        name = task or "mean over tasks"
        cells = [
            f"{s.right}/{s.n}",
            percent(s.accuracy),
            interval(s.low, s.high),
            percent(s.chance),
        ]
        cells += [_cell(companions[role], task) for role, _ in beside] + [
            _cell(scores, task) for _, scores in others
        ]
        rows.append((name, *cells))
    columns = (
        "Task",
        "right/n",
        "accuracy",
        "95 % interval",
        "guessing",
        *(role for role, _ in beside),
        *(name for name, _ in others),
    )
    return Table(
        f"tasks-{slug(own.entry)}", f"{own.entry.name}: accuracy by task, %", columns, tuple(rows)
    )


def _scores_of_companion(own: Figures, role: str) -> Scores:
    entry = next(c.entry for c, _ in own.companions if c.role == role)
    assert entry is not None
    return scores_of(entry, entry.condition)


def _at(scores: Scores, task: str | None) -> Score | None:
    return scores.overall if task is None else scores.tasks.get(task)


def _cell(scores: Scores, task: str | None) -> str:
    s = _at(scores, task)
    return NONE if s is None else percent(s.accuracy)


def conditions_table(own: Figures) -> Table:
    """Return every condition with its interval and its paired difference to the run's own
    condition.
    """
    entry = own.entry
    meaning = meanings(entry)
    tests = [c.overall for c in own.controls]
    known = iter(adjust([t for t in tests if t is not None]))
    adjusted = [None if t is None else next(known) for t in tests]
    rows = [_condition(entry, entry.condition, meaning, own.own.overall, None, "")]
    for comparison, test in zip(own.controls, adjusted, strict=True):
        rows.append(
            _condition(
                entry,
                comparison.second,
                meaning,
                own.scores[comparison.second].overall,
                test,
                comparison.why,
            )
        )
    columns = (
        "Condition",
        "What it is",
        "n",
        "accuracy",
        "95 % interval",
        f"{entry.condition} − it",
        "95 % interval",
        "McNemar p",
        "Holm",
        "p by video",
    )
    seeds = [name for name in entry.conditions if entry.seeds_of(name) != entry.seeds]
    notes = [
        f"{name}: evaluated for {seeds_text(entry.seeds_of(name), True)} only, and compared on"
        " these."
        for name in seeds
    ]
    notes.append(
        "Differences in points. Holm: over the rows of this table. p by video: conditions exchanged"
        " in whole videos; it holds when questions share videos and seeds. Differences weigh tasks"
        " alike, p-values weigh answers alike."
    )
    return Table(
        f"conditions-{slug(entry)}",
        f"{entry.name}: under every condition, mean over tasks, %",
        columns,
        tuple(rows),
        tuple(notes),
        text_columns=2,
    )


def _condition(
    entry: Entry, name: str, meaning: dict[str, str], score: Score, test: Test | None, why: str
) -> tuple[str, ...]:
    own = (
        name,
        meaning.get(name, "the bare host, told of the signal by its input"),
        str(score.n),
        percent(score.accuracy),
        interval(score.low, score.high),
    )
    if test is None:
        return (*own, why or NONE, NONE, NONE, NONE, NONE)
    return (
        *own,
        points(test.difference),
        interval(test.low, test.high, signed=True),
        p_value(test.p),
        p_value(test.p_holm),
        p_value(test.p_grouped),
    )


def meanings(entry: Entry) -> dict[str, str]:
    """Return what each condition of a recipe means, as the core and the signal's kind say it."""
    said = {
        name: (control.__doc__ or "").strip().partition("\n")[0]
        for name, control in controls_of(entry.recipe.signal).items()
    }
    own = {name: text.removeprefix("Control: ").removesuffix(".") for name, text in said.items()}
    return {**own, **BUILT_IN}


def tests_table(own: Figures, reference: Reference) -> Table:
    """Return paired tests task by task: the run against its companions and the controls of every
    kind.
    """
    compared = [t for _, t in own.companions if t is not None] + list(own.controls)
    rows: list[tuple[str, ...] | str] = []
    for comparison in compared:
        if comparison.second not in TESTED and own.entry.condition == "signal":
            continue
        rows.append(
            f"{own.entry.name} − {comparison.second}"
            + (
                f": {comparison.why}"
                if comparison.why
                else f", {seeds_text(comparison.seeds, True)}"
            )
        )
        for task in ordered(list(comparison.tasks), reference):
            t = comparison.tasks[task]
            cells = (
                str(t.n),
                points(t.difference),
                interval(t.low, t.high, signed=True),
                str(t.b),
                str(t.c),
                p_value(t.p),
                p_value(t.p_holm),
            )
            rows.append((task, *cells, p_value(t.p_grouped_holm), _detectable(t)))
    columns = (
        "Task",
        "n",
        "difference",
        "95 % interval",
        "right only first",
        "only second",
        "McNemar p",
        "Holm",
        "by video, Holm",
        "detectable",
    )
    title = f"{own.entry.name}: paired tests by task, points"
    return Table(
        f"tests-{slug(own.entry)}", title, columns, tuple(rows), (POWER_NOTE, *power_notes(own))
    )


POWER_NOTE = (
    "McNemar p is exact and treats answers as independent, seeds included; “by video” exchanges"
    " whole videos and does not. Holm: over the tasks. Detectable: the smallest true difference"
    " that McNemar's test (α 0.05, before Holm) finds in 80 of 100 repetitions, with as many"
    " questions of one seed and the discordance seen; ≥: none is found at that discordance; the"
    " figure is what would be, were all changes to one side. Questions that share videos need"
    " larger differences. Intervals and differences of the mean weigh tasks alike, tests over"
    " several tasks weigh answers alike."
)


def _detectable(t: Test) -> str:
    if t.detectable is not None:
        return percent(t.detectable)
    return f"≥ {percent(t.least)}" if t.least is not None else NONE


def power_notes(own: Figures) -> list[str]:
    """Return a sentence for each comparison with tasks that show no difference and could hardly
    have shown one.
    """
    notes = []
    for comparison in [*(t for _, t in own.companions if t is not None), *own.controls]:
        if comparison.second not in TESTED:
            continue
        silent = {task: t for task, t in comparison.tasks.items() if t.p_grouped_holm > 0.05}
        if silent:
            each = ", ".join(
                f"{task} ({t.questions} questions: {_detectable(t)} points)"
                for task, t in silent.items()
            )
            notes.append(
                f"No difference to {comparison.second} is shown on {each}. The figure is the"
                " smallest that such a sample would be expected to show: no evidence is not"
                " evidence of none."
            )
    return notes


def coverage_table(own: Figures) -> Table:
    """Return how far the signal reached, by task."""
    rows = [
        (
            c.task,
            f"{c.with_signal}/{c.samples}",
            percent(c.with_signal / c.samples),
            f"{c.steps / c.samples:.2f}",
        )
        for c in own.coverage
    ]
    columns = ("Task", "samples with active signal", "share, %", "active steps per sample")
    return Table(
        f"coverage-{slug(own.entry)}",
        f"{own.entry.name}: where the signal reached the host",
        columns,
        tuple(rows),
    )


def companions_notes(own: Figures) -> list[str]:
    """Return what stands beside a signal run, in what it differs, and what is missing."""
    return [_companion_note(companion) for companion, _ in own.companions]


def _companion_note(companion: Companion) -> str:
    if companion.entry is None:
        return companion.missing
    differs = "; ".join(
        f"{key}: {short(a)} here, {short(b)} there" for key, (a, b) in companion.differs.items()
    )
    return (
        f"{companion.role}: {companion.entry.name}, {seeds_text(companion.entry.seeds, True)}."
        + (f" It differs in {differs}." if differs else " Same recipe otherwise.")
    )


def short(value: object) -> str:
    """Return a value of a recipe for a cell, cut when long."""
    text = "absent" if value == ABSENT else value_text(value)
    return text if len(text) <= 120 else f"{text[:120]}…"


def slug(entry: Entry) -> str:
    """Return an entry's name as it may stand in an id or a label."""
    return "".join(
        c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in Path(entry.name).name
    )


def seeds_text(seeds: Sequence[int], named: bool = False) -> str:
    """Return seeds for a cell; ``named``: with the word in front."""
    if named:
        return f"{'seed' if len(seeds) == 1 else 'seeds'} {seeds_text(seeds)}"
    return ", ".join(map(str, seeds))
