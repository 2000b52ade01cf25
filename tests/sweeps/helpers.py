"""Small sweeps, and runs of them that are finished by hand."""

from modulate.evaluation.predictions import Prediction, as_lines
from modulate.runs.run import Run
from modulate.sweeps.sweep import Sweep, plan_runs
from tests.paths import SMALL

DUR, PE = (
    {"encoder": {"name": name, "params": {"dim": 32}}} for name in ("heatmap_dur", "coord_pe")
)
AXES = {
    "encoder": {"coord_rel": {}, "heatmap_dur": DUR, "coord_pe": PE},
    "sharing": {"per_layer": {}, "shared": {"modulator": {"params": {"sharing": "shared"}}}},
}
TASKS = ("one", "two")


def sweep(**changes):
    return Sweep.model_validate({"name": "trial", "base": SMALL, "axes": AXES} | changes)


def names(sweep):
    return [run.name for run in plan_runs(sweep)]


def by_name(sweep):
    return {run.name: run for run in plan_runs(sweep)}


def finish(run, folder, correct, failed=()):
    """Write what training and evaluation leave of a run.

    ``correct``: which of six samples it answers correctly; they are of two tasks and three videos.
    """
    finished = Run.create(run.recipe, folder)
    condition = run.recipe.training.condition
    records = [
        Prediction(
            id=f"q{index}",
            task=TASKS[index % 2],
            group=f"v{index // 2}",
            condition=evaluated,
            answer=0,
            prediction=0 if index in correct else 1,
            correct=index in correct,
            logits=(0.0, 1.0),
            active_steps=1,
        )
        for evaluated in (condition, "host")
        for index in range(6)
    ]
    (finished.folder / "predictions.jsonl").write_text(as_lines(records))
    finished.write_json("state.json", {"finished": True, "seconds": 1.5})
    metrics = {
        "condition": condition,
        "overall": len(correct) / 6,
        "interval": [0.0, 1.0],
        "n": 6,
        "signal": {"samples": 6},
        "failed": [{"id": sample} for sample in failed],
    }
    finished.write_json("metrics.json", metrics)
