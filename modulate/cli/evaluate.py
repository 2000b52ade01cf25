"""``modulate eval``: evaluate a run again."""

from pathlib import Path
from typing import Annotated

import typer

from modulate.cli.arguments import DEFAULT_CACHE, Cache, Trust


def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, as `modulate train` prints it.")],
    split: Annotated[str, typer.Option(help="Split to evaluate on: train, val or test.")] = "test",
    cache: Cache = DEFAULT_CACHE,
    trust: Trust = False,
) -> None:
    """Evaluate a trained run under every control; writes metrics.json and predictions.jsonl into its folder.

    Ended early, by Ctrl-C (SIGINT, exit code 130), SIGTERM (143) or anything else, it keeps the conditions that were finished: the same command goes on.
    """
    from modulate.cli.progress import bars
    from modulate.cli.show import show_metrics
    from modulate.evaluation import evaluate as evaluation
    from modulate.interrupts import graceful
    from modulate.modulation import Modulation
    from modulate.pipeline import Pipeline
    from modulate.run import Run
    from modulate.training.ranks import joined

    run = Run.open(folder)
    run.check_weights()
    modulation = Modulation.from_pretrained(run.weights)
    with joined(run.recipe, training=False) as team, bars(team.leads) as shown:
        shown.doing("loading")
        pipeline = Pipeline(run.recipe, cache, trust_remote_code=trust)
        team.in_turn(pipeline.make_data)
        with run.held(), graceful() as stop:
            metrics = evaluation.evaluate(run, pipeline, modulation, split, shown.evaluated, stop=stop)
    if team.leads:
        show_metrics(run, metrics)
