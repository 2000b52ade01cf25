"""``modulate train``: train a recipe and evaluate it."""

from pathlib import Path
from typing import Annotated

import typer

from modulate.cli.arguments import DEFAULT_CACHE, Cache, Overrides, Recipe, Trust


def train(
    recipe: Recipe,
    overrides: Overrides = None,
    runs: Annotated[Path, typer.Option(help="Folder of the runs; this one goes into a sub-folder by the recipe's name.")] = Path("runs"),
    cache: Cache = DEFAULT_CACHE,
    split: Annotated[str, typer.Option(help="Split to evaluate on: train, val or test.")] = "test",
    trust: Trust = False,
) -> None:
    """Train a recipe's modulation and evaluate it under every control. A run that is finished already is only evaluated again."""
    from modulate import evaluate as evaluation
    from modulate import train as training
    from modulate.cli.progress import bars
    from modulate.cli.show import show_metrics
    from modulate.pipeline import Pipeline
    from modulate.recipe import load_recipe
    from modulate.run import Run

    loaded = load_recipe(recipe, overrides or ())
    pipeline = Pipeline(loaded, cache, trust_remote_code=trust)  # before the run's folder is made: a host that cannot be loaded leaves none behind
    pipeline.make_data()
    run = Run.create(loaded, runs)
    with bars() as shown:
        modulation = training.train(run, pipeline, shown.trained)
        metrics = evaluation.evaluate(run, pipeline, modulation, split, shown.evaluated)
    show_metrics(run, metrics)
