"""``modulate eval``: evaluate a run again, on its own data or on other data."""

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
                "Evaluate on the data of the same kind in this folder; the results become a run of"
                " their own beside RUN, named RUN-on-FOLDER."
            ),
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Split to evaluate on: train, val or test.")] = "test",
    cache: Cache = DEFAULT_CACHE,
    trust: Trust = False,
) -> None:
    """Evaluate a trained run under every control.

    Writes metrics.json and predictions.jsonl into the run's folder.

    With --on, evaluates on other data, such as another tabletop world (generated if the folder does
    not exist) or another StreamGaze tree. The parameters of an existing world are read from its
    folder. The results of RUN itself do not change.

    After Ctrl-C (SIGINT, exit code 130), SIGTERM (143) or any other end, finished conditions are
    kept, and the same command continues.
    """
    from modulate.cli.progress import display
    from modulate.cli.tables import show_metrics
    from modulate.errors import RecipeError
    from modulate.evaluation import evaluate as evaluation
    from modulate.inference.pipeline import Pipeline
    from modulate.modulation.module import Modulation
    from modulate.runs.import_weights import on_other_data
    from modulate.runs.run import Run
    from modulate.training.processes import process_group_for
    from modulate.utils.interrupts import graceful

    if overrides and on is None:
        raise RecipeError(
            f"The override {overrides[0]!r} has no effect without --on: a run is evaluated by its"
            " own recipe. Name other data with --on FOLDER."
        )
    run = Run.open(folder)
    run.check_weights()
    with (
        process_group_for(run.recipe, training=False) as processes,
        display(processes.is_main_process) as progress,
    ):
        progress.set_status("loading")
        if on is not None:
            run = on_other_data(run, on, overrides or ())
        modulation = Modulation.from_pretrained(run.weights)
        pipeline = Pipeline(run.recipe, cache, trust_remote_code=trust)
        pipeline.build_deferred()
        processes.main_process_first(pipeline.make_data)
        with run.locked(), graceful() as stop:
            metrics = evaluation.evaluate(
                run, pipeline, modulation, split, progress.answered, stop=stop
            )
    if processes.is_main_process:
        show_metrics(run, metrics)
