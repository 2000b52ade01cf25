"""``modulate train``: train a recipe and evaluate it."""

from pathlib import Path
from typing import Annotated

import typer

from modulate.cli.arguments import DEFAULT_CACHE, Cache, Overrides, Recipe, Trust


def train(
    recipe: Recipe,
    overrides: Overrides = None,
    runs: Annotated[
        Path,
        typer.Option(help="Folder of all runs; this run gets a subfolder named after the recipe."),
    ] = Path("runs"),
    cache: Cache = DEFAULT_CACHE,
    split: Annotated[str, typer.Option(help="Split to evaluate on: train, val or test.")] = "test",
    resume: Annotated[
        bool,
        typer.Option(
            help=(
                "Continue an unfinished run of the same recipe; --no-resume deletes it and starts"
                " again."
            )
        ),
    ] = True,
    trust: Trust = False,
) -> None:
    """Train a recipe and evaluate it under every control.

    A run that is already trained is only evaluated again.

    Ctrl-C (SIGINT) or SIGTERM saves and stops the run after the current optimizer step or batch,
    with exit code 130 or 143; a second signal stops it at once. The same command continues the run,
    whatever stopped it.

    `torchrun --nproc-per-node N -m modulate train …` and `accelerate launch` split the work over N
    devices; results equal those on one device up to rounding.
    """
    from modulate.cli.progress import cache_summary, display
    from modulate.cli.tables import show_metrics
    from modulate.config.recipe import load_recipe
    from modulate.evaluation import evaluate as evaluation
    from modulate.inference.pipeline import Pipeline
    from modulate.runs.run import Run
    from modulate.training import trainer as training
    from modulate.training.processes import process_group_for
    from modulate.utils.interrupts import graceful

    loaded = load_recipe(recipe, overrides or ())
    with process_group_for(loaded) as processes, display(processes.is_main_process) as progress:
        progress.set_status("loading")
        # Loaded before the run's folder is created: a host that fails to load leaves no folder.
        pipeline = Pipeline(loaded, cache, trust_remote_code=trust)
        pipeline.build_deferred()
        processes.main_process_first(pipeline.make_data)
        run = Run.create(loaded, runs)
        with run.locked(), graceful() as stop:
            modulation = training.train(
                run,
                pipeline,
                progress.training_step,
                resume=resume,
                stop=stop,
                notice=progress.print,
            )
            metrics = evaluation.evaluate(
                run, pipeline, modulation, split, progress.answered, stop=stop
            )
            for line in cache_summary(pipeline) if processes.is_main_process else ():
                progress.print(line)
    if processes.is_main_process:
        show_metrics(run, metrics)
