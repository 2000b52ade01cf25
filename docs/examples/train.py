from pathlib import Path

from modulate import Pipeline, Recipe, Run, evaluate, load_recipe, train

recipe: Recipe = load_recipe("my.yaml", ["training.batch_size=4"])
pipeline = Pipeline(recipe, cache=Path("cache"))
pipeline.make_data()
run = Run.create(recipe, Path("runs"))
modulation = train(run, pipeline)  # a killed run continues here, to the same weights
metrics = evaluate(run, pipeline, modulation)
print(metrics["overall"], metrics["interval"])
