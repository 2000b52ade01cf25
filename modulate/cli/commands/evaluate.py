"""``modulate eval``: evaluate a run again, on its own data or on others."""

from pathlib import Path
from typing import Annotated

import typer

from modulate.cli.arguments import DEFAULT_CACHE, Cache, Trust


def evaluate(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a run, as `modulate train` prints it.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="With --on: changes to data, evaluation or name, such as data.params.seed=7.",
        ),
    ] = None,
    on: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help=(
                "Evaluate on the data of the same kind in this folder, as a run of its own beside"
                " RUN: RUN-on-FOLDER."
            ),
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Split to evaluate on: train, val or test.")] = "test",
    cache: Cache = DEFAULT_CACHE,
    trust: Trust = False,
) -> None:
    """Evaluate a trained run under every control; writes metrics.json and predictions.jsonl into
    its folder.

    With --on, on other data: another tabletop world (made there if the folder does not exist),
    another StreamGaze tree. What is in the folder says which world it is; the run's own results
    stay as they are.

    Ended early, by Ctrl-C (SIGINT, exit code 130), SIGTERM (143) or anything else, it keeps the
    conditions that were finished: the same command goes on.
    """
    from modulate.cli.progress import bars
    from modulate.cli.tables import show_metrics
    from modulate.errors import RecipeError
    from modulate.evaluation import evaluate as evaluation
    from modulate.inference.pipeline import Pipeline
    from modulate.modulation.module import Modulation
    from modulate.runs.import_weights import on_other_data
    from modulate.runs.run import Run
    from modulate.training.gradient_sync import joined
    from modulate.utils.interrupts import graceful

    if overrides and on is None:
        raise RecipeError(
            f"{overrides[0]!r} has no effect on a run's own evaluation; name other data with --on"
            " FOLDER."
        )
    run = Run.open(folder)
    run.check_weights()
    with joined(run.recipe, training=False) as processes, bars(processes.leads) as shown:
        shown.doing("loading")
        if on is not None:
            run = on_other_data(run, on, overrides or ())
        modulation = Modulation.from_pretrained(run.weights)
        pipeline = Pipeline(run.recipe, cache, trust_remote_code=trust)
        pipeline.build_deferred()
        processes.in_turn(pipeline.make_data)
        with run.held(), graceful() as stop:
            metrics = evaluation.evaluate(
                run, pipeline, modulation, split, shown.evaluated, stop=stop
            )
    if processes.leads:
        show_metrics(run, metrics)
