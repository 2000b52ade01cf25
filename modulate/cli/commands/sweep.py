"""``modulate sweep``: many runs of one recipe, changed along several axes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modulate.cli.arguments import DEFAULT_CACHE, Cache, Trust
from modulate.errors import RecipeError

if TYPE_CHECKING:
    from modulate.sweeps.job_runner import Job
    from modulate.sweeps.sweep import Planned


def sweep(
    file: Annotated[
        str,
        typer.Argument(
            metavar="SWEEP", help="Name of a shipped sweep (`modulate ls`) or a YAML file."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help=(
                "Keys of the sweep, replaced whole (seeds=[0,1]), or changes to every run's recipe."
            ),
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; by default one for each device.")
    ] = None,
    devices: Annotated[
        str,
        typer.Option(
            help=(
                "Devices to spread runs over: auto (every CUDA device present, else the CPU), cpu,"
                " or e.g. 0,1."
            )
        ),
    ] = "auto",
    runs: Annotated[
        Path, typer.Option(help="Folder of the runs; the sweep's go into a sub-folder by its name.")
    ] = Path("runs"),
    cache: Cache = DEFAULT_CACHE,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Validate every run and list them; start nothing.")
    ] = False,
    trust: Trust = False,
) -> None:
    """Train and evaluate every run of a sweep, several at a time.

    Finished runs are skipped, interrupted ones continued. Exit code 1 when one fails.
    """
    from modulate.cli import sweep_tables
    from modulate.distributed.launch import launched
    from modulate.sweeps import results as swept
    from modulate.sweeps import sweep as sweeps
    from modulate.sweeps.job_runner import run_jobs
    from modulate.utils.file_lock import bequeathed

    if launched():
        raise RecipeError(
            "modulate sweep starts its own processes, one for each device; start it once, without"
            " torchrun or accelerate launch."
        )
    loaded = sweeps.load_sweep(file, overrides or ())
    plan = sweeps.plan(loaded)
    folder = runs / loaded.name
    if dry_run:
        sweep_tables.plan(loaded, plan, swept.states(plan, folder), folder)
        return
    with bequeathed(folder, lambda text: typer.echo(text, err=True)) as handle:
        states = swept.states(plan, folder)
        waiting = [run for run in plan if states[run.name] != "finished"]
        places = slots(devices, jobs, len(waiting))
        with sweep_tables.progress(plan, states) as shown:
            shown.doing("preparing the data")
            _prepare(waiting, trust)
            listener = sweep_tables.listener(shown, plan, states, folder)
            outcomes = run_jobs(
                [_job(run, folder, cache, trust) for run in waiting],
                places,
                listener,
                handles=[handle],
            )
        failed = {
            o.name: sweep_tables.last_lines(folder, o)
            for o in outcomes.ended
            if o.code and not o.interrupted
        }
        sweep_tables.results(swept.write_results(loaded, plan, folder, failed), folder, plan)
    if outcomes.signum is not None:
        left = len(outcomes.waiting) + sum(o.interrupted and o.code != 0 for o in outcomes.ended)
        typer.echo(
            f"Interrupted with {left} of {len(plan)} runs to go. The same command continues.",
            err=True,
        )
        raise typer.Exit(128 + outcomes.signum)
    if failed:
        raise typer.Exit(1)


def _prepare(waiting: "list[Planned]", trust: bool) -> None:
    """Let data sets make or check their files once, before several runs would do so side by side;
    refuse remote code before anything starts.
    """
    from modulate.inference.pipeline import refuse_remote_code

    seen = []
    for run in waiting:
        if not trust:
            refuse_remote_code(run.recipe)
        data = run.recipe.data
        if data not in seen:
            seen.append(data)
            dataset = data.build("dataset")
            with data.blame("dataset", "prepare"):
                dataset.prepare()


def slots(devices: str, jobs: int | None, waiting: int) -> list[dict[str, str]]:
    """Return what each of the jobs that run at a time finds in its environment: its device, and its
    share of the cores unless OMP_NUM_THREADS is set.
    """
    import os

    names = _devices(devices)
    n = min(jobs or len(names), max(1, waiting))
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // n))
    visible = [""] if names == ["cpu"] else names
    return [
        {"CUDA_VISIBLE_DEVICES": visible[i % len(visible)], "OMP_NUM_THREADS": threads}
        for i in range(n)
    ]


def _devices(text: str) -> list[str]:
    """Return the devices asked for, by the names that CUDA_VISIBLE_DEVICES knows them by."""
    import os

    import torch

    if text == "auto":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        count = torch.cuda.device_count()
        names = (
            [v.strip() for v in visible.split(",")][:count]
            if visible
            else [str(i) for i in range(count)]
        )
        return names or ["cpu"]
    names = [part.strip() for part in text.split(",")]
    if ("cpu" in names and len(names) > 1) or not all(names):
        raise RecipeError(
            f"--devices {text!r} is none of auto, cpu, and CUDA devices separated by commas (0,1)."
        )
    if names != ["cpu"] and torch.cuda.device_count() == 0:
        raise RecipeError(
            f"--devices {text!r}: no CUDA device is present here; take --devices cpu."
        )
    return names


def _job(run: "Planned", folder: Path, cache: Path, trust: bool) -> "Job":
    """Return the command of one run, which reads its recipe from a file beside the runs."""
    import sys

    from modulate.config.recipe import dump
    from modulate.sweeps.job_runner import Job
    from modulate.utils.atomic_files import write_text

    recipe = folder / "jobs" / f"{run.name}.yaml"
    text = dump(run.recipe)
    write_text(recipe, text)
    command = (
        sys.executable,
        "-m",
        "modulate",
        "train",
        str(recipe),
        "--runs",
        str(folder),
        "--cache",
        str(cache),
    )
    return Job(
        run.name,
        command + (("--trust-remote-code",) if trust else ()),
        folder / "jobs" / f"{run.name}.log",
    )
