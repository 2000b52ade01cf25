"""The host, files and modulation that all measurements share."""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.naive import Naive
from benchmarks.speed import fixtures
from modulate import ClipInput, Modulation
from modulate.inference.pipeline import Pipeline


class Bench:
    """The bench host, its data set, and a modulation with non-zero residuals, in ``folder``."""

    def __init__(self, folder: Path, moments: int, repeats: int) -> None:
        self.folder = folder
        self.repeats = repeats
        if not (folder / "host").is_dir():
            fixtures.save_host(folder / "host")
            fixtures.write_dataset(folder / "world", videos=1, moments=fixtures.MOMENTS[:moments])

    def pipeline_for(self, name: str, **changes: Any) -> Pipeline:
        """Return a pipeline with its own feature cache."""
        recipe = fixtures.recipe(self.folder / "world", self.folder / "host", name=name, **changes)
        pipeline = Pipeline(recipe, self.folder / f"cache-{name}")
        pipeline.make_data()
        return pipeline

    @cached_property
    def pipeline(self) -> Pipeline:
        """The pipeline that most measurements use."""
        return self.pipeline_for("bench")

    @cached_property
    def modulation(self) -> Modulation:
        """A modulation with non-zero residuals, frozen as after loading."""
        return with_random_writers(self.pipeline.fresh_modulation()).eval().requires_grad_(False)

    @cached_property
    def prepared(self) -> Any:
        """The first sample."""
        return self.pipeline.prepare(self.pipeline.samples("train")[0])

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """The first sample as a batch of one."""
        return self.pipeline.collate([self.prepared]).inputs

    @property
    def rows(self) -> list[list[ClipInput]]:
        """The conditioning of the first sample."""
        return [self.prepared.clip_inputs()]

    def naive(self, weights: Modulation) -> Naive:
        """Return the released way of training, with a copy of these weights."""
        from transformers import AutoModelForImageTextToText

        eager = (
            AutoModelForImageTextToText.from_pretrained(
                self.folder / "host", attn_implementation="eager"
            )
            .eval()
            .requires_grad_(False)
        )
        p = self.pipeline
        return Naive(
            eager,
            p.host,
            p.processor,
            p.backbone,
            dict(weights.state_dict()),
            fixtures.INJECTED,
            frames=fixtures.FRAMES,
            scale=fixtures.SCALE,
            blocks=2,
            lr=3e-4,
        )

    def prompt(self, sample: Any) -> str:
        """Return the user's turn."""
        return self.pipeline.dataset.prompt(sample, "letter")


def with_random_writers(modulation: Modulation) -> Modulation:
    """Fill the writers of a new modulation with small random weights."""
    torch.manual_seed(1)
    for writer in modulation.out:
        nn.init.normal_(writer.weight, std=0.02)
    return modulation
