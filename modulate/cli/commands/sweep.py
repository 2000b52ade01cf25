"""``modulate sweep``: train many variants of one recipe."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modulate.cli.arguments import DEFAULT_CACHE, Cache, Trust
from modulate.errors import RecipeError

if TYPE_CHECKING:
    from modulate.sweeps.job_runner import Job, Outcomes
    from modulate.sweeps.sweep import PlannedRun


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
                "A whole key of the sweep (seeds=[0,1]), or a change to every run's recipe"
                " (training.batch_size=4)."
            ),
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at the same time; by default one per device.")
    ] = None,
    devices: Annotated[
        str,
        typer.Option(
            help=(
                "Devices to spread runs over: auto (every CUDA device, else the CPU), cpu, or CUDA"
                " devices such as 0,1."
            )
        ),
    ] = "auto",
    runs: Annotated[
        Path, typer.Option(help="Folder of all runs; those of the sweep get a subfolder.")
    ] = Path("runs"),
    cache: Cache = DEFAULT_CACHE,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Validate and list every run; start none.")
    ] = False,
    trust: Trust = False,
) -> None:
    """Train and evaluate every run of a sweep, several at a time.

    Skips finished runs and continues interrupted ones. Exit code 1 if a run fails.
    """
    from modulate.cli import sweep_tables
    from modulate.distributed.launch import launched
    from modulate.sweeps import results as swept
    from modulate.sweeps import sweep as sweeps
    from modulate.utils.file_lock import inheritable_lock

    if launched():
        raise RecipeError(
            "modulate sweep starts its own processes, one per device; run it without torchrun and"
            " accelerate launch."
        )
    loaded = sweeps.load_sweep(file, overrides or ())
    plan = sweeps.plan_runs(loaded)
    folder = runs / loaded.name
    if dry_run:
        sweep_tables.plan(loaded, plan, swept.run_states(plan, folder), folder)
        return
    # The lock is handed on to the jobs: should this process be killed, the sweep counts as running
    # until they have ended.
    with inheritable_lock(folder, lambda text: typer.echo(text, err=True)) as handle:
        outcomes = _run(plan, folder, devices, jobs, cache, trust, handle)
        failed = {
            outcome.name: sweep_tables.last_lines(folder, outcome)
            for outcome in outcomes.ended
            if outcome.code and not outcome.interrupted
        }
        sweep_tables.results(swept.write_results(loaded, plan, folder, failed), folder, plan)
    _exit(outcomes, len(plan), bool(failed))


def _run(
    plan: "list[PlannedRun]",
    folder: Path,
    devices: str,
    jobs: int | None,
    cache: Path,
    trust: bool,
    handle: int,
) -> "Outcomes":
    """Run every run of a sweep that is not finished yet."""
    from modulate.cli import sweep_tables
    from modulate.sweeps.job_runner import run_jobs
    from modulate.sweeps.results import run_states

    states = run_states(plan, folder)
    waiting = [run for run in plan if states[run.name] != "finished"]
    environments = slots(devices, jobs, len(waiting))
    with sweep_tables.progress(plan, states) as progress:
        progress.set_status("preparing the data")
        _prepare(waiting, trust)
        return run_jobs(
            [_job(run, folder, cache, trust) for run in waiting],
            environments,
            sweep_tables.listener(progress, plan, states, folder),
            handles=[handle],
        )


def _exit(outcomes: "Outcomes", total: int, failed: bool) -> None:
    """Raise ``typer.Exit`` if the sweep was interrupted or a run failed."""
    if outcomes.signum is not None:
        interrupted = sum(outcome.interrupted and outcome.code != 0 for outcome in outcomes.ended)
        typer.echo(
            f"Interrupted: {len(outcomes.waiting) + interrupted} of {total} runs remain. The same"
            " command continues.",
            err=True,
        )
        raise typer.Exit(128 + outcomes.signum)
    if failed:
        raise typer.Exit(1)


def _prepare(waiting: "list[PlannedRun]", trust: bool) -> None:
    """Let every dataset generate or check its files, and refuse remote code.

    Done once before the first job, so that jobs do not generate the same files at the same time.
    """
    from modulate.inference.pipeline import refuse_remote_code

    prepared = []
    for run in waiting:
        if not trust:
            refuse_remote_code(run.recipe)
        data = run.recipe.data
        if data not in prepared:
            prepared.append(data)
            dataset = data.build("dataset")
            with data.blame("dataset", "prepare"):
                dataset.prepare()


def slots(devices: str, jobs: int | None, waiting: int) -> list[dict[str, str]]:
    """Return the environment variables of each job slot: its device, and its share of the cores.

    A value of OMP_NUM_THREADS that the user set is kept.
    """
    import os

    names = _devices(devices)
    count = min(jobs or len(names), max(1, waiting))
    # A container may allow fewer cores than the machine has; macOS cannot say.
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // count))
    visible = [""] if names == ["cpu"] else names
    return [
        {"CUDA_VISIBLE_DEVICES": visible[i % len(visible)], "OMP_NUM_THREADS": threads}
        for i in range(count)
    ]


def _devices(text: str) -> list[str]:
    """Return the devices that ``text`` names, as CUDA_VISIBLE_DEVICES writes them."""
    import os

    import torch

    if text == "auto":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        count = torch.cuda.device_count()
        if visible:
            names = [part.strip() for part in visible.split(",")][:count]
        else:
            names = [str(index) for index in range(count)]
        return names or ["cpu"]
    names = [part.strip() for part in text.split(",")]
    if ("cpu" in names and len(names) > 1) or not all(names):
        raise RecipeError(
            f"--devices {text!r} names no devices; use auto, cpu, or CUDA devices separated by"
            " commas (0,1)."
        )
    if names != ["cpu"] and torch.cuda.device_count() == 0:
        raise RecipeError(
            f"--devices {text!r}: this machine has no CUDA device; use --devices cpu."
        )
    return names


def _job(run: "PlannedRun", folder: Path, cache: Path, trust: bool) -> "Job":
    """Write the recipe of one run to a file, and return the command that trains it."""
    import sys

    from modulate.config.recipe import dump
    from modulate.sweeps.job_runner import Job
    from modulate.utils.atomic_files import write_text

    recipe = folder / "jobs" / f"{run.name}.yaml"
    write_text(recipe, dump(run.recipe))
    command: tuple[str, ...] = (
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
    if trust:
        command = (*command, "--trust-remote-code")
    return Job(run.name, command, folder / "jobs" / f"{run.name}.log")
