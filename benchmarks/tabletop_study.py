"""Study on the tabletop world: does gaze, and only gaze, improve the answers?

python benchmarks/tabletop_study.py [--jobs 2] [--collect] [--runs runs/study] [key.sub=value …]

For each of three seeds there is one run per encoder with all controls, one with LoRA alone, and one
with the same modulation and a blank signal, for which all encoders give exactly 0. On still scenes
(one time step, only the modulator is trained), each encoder runs once: can the host be steered? The
recipes of other modulators and signals run once each. Finished runs are not repeated. Writes
docs/results/tabletop.md and .json.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from modulate.errors import MissingFileError
from modulate.evaluation.metrics import compare, summarize
from modulate.evaluation.predictions import Prediction, read_predictions
from modulate.runs.records import Metrics, read_metrics

RECIPE = "recipes/gazeqwen_tiny.yaml"
SEEDS = (0, 1, 2)  # chosen before the first run
ENCODERS = {
    "heatmap_dur": "{dim: 64}",
    "heatmap_tau": "{dim: 64}",
    # Twice DETR's scale: neighboring tokens of the 4 x 4 grid differ by half a period.
    "coord_rel": "{dim: 64, scale: 12.566}",
    "coord_pe": "{dim: 64}",
}
DEFAULT = "heatmap_dur"
CONTROLS = ("none", "blank", "shuffled", "centre", "shifted", "host", "no_frames", "no_pixels")
LORA_ONLY = "training.stages=[{name: lora, train: [lora], epochs: %s, lr: 1.0e-3}]"
STILLS = [
    "data.params.window=1.0",
    "sampling={fps: 2.0, max_frames: 2}",
    "lora=null",
    "evaluation.conditions=[none]",
]
STILLS_STAGE = "training.stages=[{name: modulator, train: [modulator], epochs: %s, lr: 1.0e-3}]"
OTHERS = (
    "steering_tiny",
    "film_tiny",
    "gated_cross_attention_tiny",
    "hand_tiny",
    "gaze_and_hand_tiny",
)
PAGE = Path("docs/results/tabletop")
RESAMPLES = 2000


def jobs(extra: Sequence[str], epochs: str, still_epochs: str) -> list[list[str]]:
    """Return name, recipe and overrides of every run, as the command line takes them."""
    found = [
        (
            int(encoder != DEFAULT),
            [
                f"name=stills-{encoder}-0",
                f"encoder.name={encoder}",
                f"encoder.params={params}",
                STILLS_STAGE % still_epochs,
                *STILLS,
                *extra,
            ],
        )
        for encoder, params in ENCODERS.items()
    ]
    for seed in SEEDS:
        common = [f"seed={seed}", *extra]
        found.append(
            (
                0,
                [
                    f"name=gaze_free-{seed}",
                    "training.condition=blank",
                    "evaluation.conditions=[none, host]",
                    *common,
                ],
            )
        )
        found.append(
            (
                0,
                [
                    f"name=lora_only-{seed}",
                    "training.condition=none",
                    LORA_ONLY % epochs,
                    "evaluation.conditions=[host]",
                    *common,
                ],
            )
        )
        for encoder, params in ENCODERS.items():
            conditions = CONTROLS if (encoder, seed) == (DEFAULT, SEEDS[0]) else CONTROLS[:6]
            setting = [
                f"encoder.name={encoder}",
                f"encoder.params={params}",
                f"evaluation.conditions=[{', '.join(conditions)}]",
                *common,
            ]
            found.append(
                (0 if encoder == DEFAULT else 1 + seed, [f"name={encoder}-{seed}", *setting])
            )
    ordered = [
        [RECIPE, *overrides] for _, overrides in sorted(found, key=lambda item: item[0])
    ]  # the default encoder first, then seed by seed
    return ordered + [[f"recipes/{name}.yaml", f"name={name}-0", *extra] for name in OTHERS]


def run(job: Sequence[str], runs: Path) -> None:
    """Train and evaluate one recipe in its own process, with one thread."""
    recipe, *overrides = job
    name = overrides[0].removeprefix("name=")
    if (runs / name / "metrics.json").is_file():
        return
    runs.mkdir(parents=True, exist_ok=True)
    with (runs / f"{name}.txt").open("w") as log:
        command = [
            sys.executable,
            "-m",
            "modulate",
            "train",
            recipe,
            "--runs",
            str(runs),
            *overrides,
        ]
        subprocess.run(
            command, stdout=log, stderr=subprocess.STDOUT, check=True, env=_environment()
        )
    print(f"{name} done", flush=True)


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "OMP_NUM_THREADS": "1"}


def seeds_of(runs: Path, name: str) -> list[int]:
    """Return the seeds with a finished run."""
    return [seed for seed in SEEDS if (runs / f"{name}-{seed}" / "metrics.json").is_file()]


def finished_metrics(folder: Path) -> Metrics:
    """Return the metrics of a finished run."""
    metrics = read_metrics(folder / "metrics.json")
    if metrics is None:
        raise MissingFileError(f"{folder} has no metrics.json: the run is not finished.")
    return metrics


def run_all(waiting: Sequence[Sequence[str]], runs: Path, at_once: int) -> None:
    """Run all jobs, ``at_once`` at a time."""
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(lambda job: run(job, runs), waiting))


def publish(page: Path, figures: dict[str, Any], text: str) -> None:
    """Write the figures to ``page``.json and the text to ``page``.md; print the text."""
    page.parent.mkdir(parents=True, exist_ok=True)
    page.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    page.with_suffix(".md").write_text(text)
    print(text)


def records(runs: Path, name: str, condition: str, seeds: Sequence[int]) -> list[Prediction]:
    """Return the predictions under one condition for all seeds; ids begin with the seed."""
    found = []
    for seed in seeds:
        answers = read_predictions(runs / f"{name}-{seed}" / "predictions.jsonl")
        found += [
            replace(answer, id=f"{seed}/{answer.id}") for answer in answers.get(condition, [])
        ]
    return found


def accuracy(rows: Sequence[Prediction]) -> dict[str, Any]:
    """Return the unweighted mean over tasks and each task, with intervals clustered by video."""
    return summarize(rows, RESAMPLES, seed=0)


def difference(first: Sequence[Prediction], second: Sequence[Prediction]) -> dict[str, Any]:
    """Return the paired difference of two conditions, overall and by task, clustered by video."""
    return compare(first, second, RESAMPLES, seed=0)


def collect(runs: Path) -> dict[str, Any]:
    """Return all figures of the page; an encoder counts with its finished seeds."""
    figures: dict[str, Any] = {"encoders": {}}
    for name, condition in (("lora_only", "none"), ("gaze_free", "blank")):
        figures[name] = accuracy(records(runs, name, condition, seeds_of(runs, name))) | {
            "seeds": seeds_of(runs, name)
        }
    for encoder in ENCODERS:
        seeds = seeds_of(runs, encoder)
        if not seeds:
            continue
        conditions = ("signal", *(CONTROLS if encoder == DEFAULT else CONTROLS[:6]))
        rows = {
            condition: records(
                runs, encoder, condition, seeds if condition not in CONTROLS[6:] else SEEDS[:1]
            )
            for condition in conditions
        }
        figures["encoders"][encoder] = {
            "params": ENCODERS[encoder],
            "seeds": seeds,
            "conditions": {condition: accuracy(answers) for condition, answers in rows.items()},
            "per_seed": [finished_metrics(runs / f"{encoder}-{seed}").overall for seed in seeds],
            "shuffled - blank": difference(rows["shuffled"], rows["blank"]),
            "shifted - blank": difference(rows["shifted"], rows["blank"]),
            "blank - gaze_free": difference(
                rows["blank"], records(runs, "gaze_free", "blank", seeds)
            ),
            "signal - lora_only": difference(
                rows["signal"], records(runs, "lora_only", "none", seeds)
            ),
        }
    figures["stills"] = {
        other: accuracy(records(runs, f"stills-{other}", "signal", SEEDS[:1]))
        for other in ENCODERS
        if (runs / f"stills-{other}-0" / "metrics.json").is_file()
    }
    for name in OTHERS:
        if (runs / f"{name}-0" / "metrics.json").is_file():
            metrics = finished_metrics(runs / f"{name}-0")
            signal = metrics.model_dump(include={"overall", "interval", "n", "tasks"})
            controls = {
                condition: control.model_dump() for condition, control in metrics.controls.items()
            }
            figures.setdefault("others", {})[name] = {"signal": signal, **controls}
    return figures


def page(figures: dict[str, Any], overrides: Sequence[str]) -> str:
    """Return the figures as Markdown."""
    lora = figures["lora_only"]
    free = figures["gaze_free"]
    lines = [
        "# The tabletop study",
        "",
        " ".join(["`python benchmarks/tabletop_study.py", *overrides]) + "`",
        "",
    ]
    lines += [
        (
            f"Test split, {free['n'] // len(free['seeds'])} gaze-only questions; accuracy in per"
            " cent, pooled over seeds, with 95 % bootstrap intervals clustered by video."
        ),
        "",
    ]
    names = ["signal", *CONTROLS]
    lines += [_row(["encoder", "seeds", *names]), _row(["---"] * (len(names) + 2))]
    for encoder, found in figures["encoders"].items():
        cells = [
            cell(found["conditions"][condition], "overall")
            if condition in found["conditions"]
            else "–"
            for condition in names
        ]
        lines.append(_row([f"`{encoder}`", ", ".join(map(str, found["seeds"])), *cells]))
    lines += ["", f"LoRA alone, trained (seeds {lora['seeds']}): {cell(lora, 'overall')}."]
    lines += [
        (
            "The same modulation trained with a blank signal, the gaze-free ceiling (seeds"
            f" {free['seeds']}): {cell(free, 'overall')}."
        ),
        "",
    ]
    tasks = sorted(free["tasks"])
    lines += [
        "## Tasks, under the clip's own signal",
        "",
        _row(["encoder", *(f"`{task}`" for task in tasks), "seeds (overall)"]),
        _row(["---"] * (len(tasks) + 2)),
    ]
    for encoder, found in figures["encoders"].items():
        own = found["conditions"]["signal"]["tasks"]
        lines.append(
            _row(
                [
                    f"`{encoder}`",
                    *(cell(own[task], "accuracy") for task in tasks),
                    ", ".join(f"{100 * share:.1f}" for share in found["per_seed"]),
                ]
            )
        )
    pairs = ["shuffled - blank", "shifted - blank", "blank - gaze_free", "signal - lora_only"]
    lines += [
        "",
        "## Differences (points)",
        "",
        _row(["encoder", *pairs]),
        _row(["---"] * (len(pairs) + 1)),
    ]
    for encoder, found in figures["encoders"].items():
        lines.append(
            _row(
                [f"`{encoder}`", *(cell(found[pair], "difference", signed=True) for pair in pairs)]
            )
        )
    lines += [
        "",
        "## Still scenes: can the host be steered?",
        "",
        (
            "One time step (two frames of the last second), the modulator alone trained, seed 0;"
            " the clip's own signal."
        ),
        "",
    ]
    lines += [
        _row(["encoder", "overall", *(f"`{task}`" for task in tasks)]),
        _row(["---"] * (len(tasks) + 2)),
    ]
    for encoder, found in figures["stills"].items():
        lines.append(
            _row(
                [
                    f"`{encoder}`",
                    cell(found, "overall"),
                    *(cell(found["tasks"][task], "accuracy") for task in tasks),
                ]
            )
        )
    lines += others_of(figures.get("others", {}))
    return "\n".join([*lines, "", *READING]) + "\n"


def others_of(found: dict[str, Any]) -> list[str]:
    """Return the table of the other recipes, with a column for each condition of any recipe."""
    names = list(
        dict.fromkeys(condition for conditions in found.values() for condition in conditions)
    )
    lines = [
        "",
        "## Other modulators and signals",
        "",
        "The recipes as they ship, seed 0.",
        "",
        _row(["recipe", *names]),
        _row(["---"] * (len(names) + 1)),
    ]
    return lines + [
        _row(
            [
                f"`{recipe}`",
                *(
                    cell(by[condition], "overall") if condition in by else "–"
                    for condition in names
                ),
            ]
        )
        for recipe, by in found.items()
    ]


READING = """## How to read it

- `signal`: the clip's own gaze. `none`: no residual, trained LoRA on. `blank`: no fixations.
  `shuffled`: another clip's gaze. `centre`: gaze at the center. `shifted`: the clip's gaze half a
  window late. `host`: the bare host. Options are drawn so that frames without gaze give one in
  four.
- `no_frames`: host and backbone see gray frames with the gaze, which shows what gaze alone tells.
- `no_pixels`: only the host sees gray frames, the backbone's features stay. Answers that remain
  correct bypass the host's own vision.
- All encoders are trained alike, for few steps; a low figure shows what this budget reaches, not
  what an encoder can do.
- The gaze-free ceiling is one run for all encoders: with a blank signal each of them gives exactly
  0.
- Intervals cover the questions, not the seeds: `coord_rel` is one seed that learned and two that
  did not.
- LoRA alone is trained for one epoch (71 steps), the modulations for 5.5 (391): its row shows what
  that much LoRA learns without gaze, not what more training would.""".splitlines()


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def cell(found: dict[str, Any], key: str, signed: bool = False) -> str:
    """Return a share with its interval, in percent."""
    form = "{:+.1f}" if signed else "{:.1f}"
    middle, low, high = (form.format(100 * share) for share in (found[key], *found["interval"]))
    return f"{middle} [{low}, {high}]"


def main() -> None:
    """Train the missing runs, then write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/study"))
    parser.add_argument("--lora-epochs", default="1", help="epochs of the LoRA-only run")
    parser.add_argument("--still-epochs", default="5", help="epochs on still scenes")
    parser.add_argument(
        "--collect",
        action="store_true",
        help="only write the page from the finished runs",
    )
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    if not options.collect:
        run_all(
            jobs(options.overrides, options.lora_epochs, options.still_epochs),
            options.runs,
            options.jobs,
        )
    figures = collect(options.runs)
    publish(PAGE, figures, page(figures, options.overrides))


if __name__ == "__main__":
    main()
