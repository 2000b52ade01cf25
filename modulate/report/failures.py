"""What failed in the runs of a report: samples in evaluation and in training, and steps that
training did not take.
"""

from collections.abc import Sequence

from modulate.report.runs import Entry, Recorded
from modulate.report.table import Table

_REASONS = {
    "not_finite": "loss or gradients were not finite",
    "scaled": "fp16's loss scale was too large and has been lowered",
    "no_samples": "all of its samples failed",
}


def failures_table(entries: Sequence[Entry], most: int = 500) -> Table | None:
    """Return all failed samples, and what training left out; None when there is neither."""
    runs = [run for entry in entries for run in entry.runs]
    asked = [(run.name, r.id, r.condition, r.error or "") for run in runs for r in run.failed]
    trained = [
        (run.name, sample, "training", error)
        for run in runs
        for sample, error in run.training.failed.items()
    ]
    rows = asked + trained
    notes = [note for run in runs for note in _left_out(run)]
    if not rows and not notes:
        return None
    if trained:
        notes.insert(0, "A sample that failed in training took no part in its step.")
    if asked:
        notes.insert(0, _scored(entries))
    if len(rows) > most:
        notes.append(
            f"… and {len(rows) - most} more; the runs' metrics.json and state.json list all."
        )
    return Table(
        "failures",
        f"Failed samples: {len(rows)}",
        ("Run", "Sample", "Condition", "Error"),
        tuple(rows[:most]),
        tuple(notes),
        text_columns=4,
    )


def _scored(entries: Sequence[Entry]) -> str:
    having = [entry for entry in entries if any(run.failed for run in entry.runs)]
    left_out = [entry.name for entry in having if entry.recipe.evaluation.failed == "left_out"]
    if not left_out:
        return "A failed sample counts as wrong."
    others = " All others count as wrong." if len(left_out) < len(having) else ""
    return (
        "Left out of all figures, as the recipe says (evaluation.failed: left_out): those of"
        f" {', '.join(left_out)}, under every condition.{others}"
    )


def _left_out(run: Recorded) -> list[str]:
    """Return what of a training did not take part although nothing failed."""
    notes = [
        f"{run.name}: {n} training {'step was' if n == 1 else 'steps were'} not taken:"
        f" {_REASONS.get(why, why)}."
        for why, n in run.training.skipped.items()
    ]
    samples = run.training.left_out
    if samples:
        notes.append(
            f"{run.name}: {samples} training {'sample was' if samples == 1 else 'samples were'}"
            " left out, as the signal is empty (training.empty: skip)."
        )
    return notes
