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
        typer.Option(
            help="Folder of the runs; this one goes into a sub-folder by the recipe's name."
        ),
    ] = Path("runs"),
    cache: Cache = DEFAULT_CACHE,
    split: Annotated[str, typer.Option(help="Split to evaluate on: train, val or test.")] = "test",
    resume: Annotated[
        bool,
        typer.Option(
            help=(
                "Go on where a run of the same recipe ended, whatever ended it; --no-resume removes"
                " what it has and starts anew."
            )
        ),
    ] = True,
    trust: Trust = False,
) -> None:
    """Train a recipe's modulation and evaluate it under every control.

    A run that is finished already is only evaluated again.

    Ctrl-C (SIGINT) or SIGTERM ends it, saved, after the optimizer step or batch that it is at, with
    exit code 130 or 143; a second one ends it at once. However it ended, the same command goes on.

    `torchrun --nproc-per-node N -m modulate train …` and `accelerate launch` share the work over N
    devices; the results are those of one, up to rounding.
    """
    from modulate.cli.progress import bars, what_was_kept
    from modulate.cli.tables import show_metrics
    from modulate.config.recipe import load_recipe
    from modulate.evaluation import evaluate as evaluation
    from modulate.inference.pipeline import Pipeline
    from modulate.runs.run import Run
    from modulate.training import trainer as training
    from modulate.training.gradient_sync import joined
    from modulate.utils.interrupts import graceful

    loaded = load_recipe(recipe, overrides or ())
    with joined(loaded) as processes, bars(processes.leads) as shown:
        shown.doing("loading")
        # Before the run's folder is made: a host that cannot be loaded leaves none behind.
        pipeline = Pipeline(loaded, cache, trust_remote_code=trust)
        pipeline.build_deferred()
        processes.in_turn(pipeline.make_data)
        run = Run.create(loaded, runs)
        with run.held(), graceful() as stop:
            modulation = training.train(
                run, pipeline, shown.trained, resume=resume, stop=stop, notice=shown.say
            )
            metrics = evaluation.evaluate(
                run, pipeline, modulation, split, shown.evaluated, stop=stop
            )
            for line in what_was_kept(pipeline) if processes.leads else ():
                shown.say(line)
    if processes.leads:
        show_metrics(run, metrics)
