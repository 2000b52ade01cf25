"""``modulate features``: features of all clips ahead of training."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modulate.cli.arguments import DEFAULT_CACHE, Cache, Overrides, Recipe, Trust

if TYPE_CHECKING:
    from modulate.data.clip_shards import Share
    from modulate.data.precompute import FilledCounts


def features(
    recipe: Recipe,
    overrides: Overrides = None,
    split: Annotated[
        list[str] | None,
        typer.Option(
            help="Split whose clips are wanted, again for more; by default train, val and test."
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER/OF",
            help=(
                "Take this share of the videos alone, 1/8 to 8/8 for example; others take the"
                " others."
            ),
        ),
    ] = None,
    cache: Cache = DEFAULT_CACHE,
    device: Annotated[
        str,
        typer.Option(
            help=(
                "Where the backbone runs; auto: CUDA if present, by LOCAL_RANK where there are"
                " several devices, else the CPU."
            )
        ),
    ] = "auto",
    trust: Trust = False,
) -> None:
    """Compute the backbone's features of all clips that a recipe's training and evaluation ask for,
    and their frames if features.frames_gib is set.

    Without the host. Under torchrun or accelerate launch every process takes its share; with
    --shard, so do machines that know nothing of each other. Ctrl-C (SIGINT, exit code 130) or
    SIGTERM (143) ends it after the clip that it is at; however it ended, the same command computes
    what is missing.
    """
    import torch

    from modulate.cli.progress import bars
    from modulate.config.recipe import load_recipe, refuse_remote_code
    from modulate.data.clip_shards import SPLITS, Share, planned
    from modulate.data.feature_extractor import FeatureExtractor
    from modulate.data.precompute import FeatureFiller, Sizes, refuse_failures, refuse_too_small
    from modulate.errors import DataError
    from modulate.utils.atomic_files import refuse_unwritable
    from modulate.utils.interrupts import graceful

    loaded = load_recipe(recipe, overrides or ())
    share = Share.here(shard)
    if not trust:
        refuse_remote_code(loaded)
    refuse_unwritable(cache, "--cache")
    first = (
        os.environ.get("LOCAL_RANK", "0") == "0"
    )  # one terminal has room for the bars of one process
    with bars(first) as shown:
        shown.doing("looking for what is missing")
        extractor = FeatureExtractor(loaded, cache, torch.device(_device(device)), require_disk=True)
        extractor.make_data()
        everything = planned(extractor, split or SPLITS)
        if not everything:
            raise DataError(f"There are no samples in {', '.join(split or SPLITS)}.")
        refuse_too_small(extractor, Sizes(extractor).of(everything))
        own = share.clips(everything)
        with graceful() as stop:
            done = FeatureFiller(
                extractor, lambda n: shown.counted("features", n, len(own)), stop
            ).fill(own)
    _show(done, share, len(own), cache)
    refuse_failures(extractor, own, done)


def _device(text: str) -> str:
    """Return torch's name of a device."""
    import torch

    from modulate.errors import RecipeError

    if text == "auto":
        count = torch.cuda.device_count()
        rank = os.environ.get("LOCAL_RANK", "0")
        return f"cuda:{int(rank) % count}" if count and rank.isdecimal() else "cpu"
    try:
        kind = torch.device(text).type
        if kind == "cpu" or (kind == "cuda" and torch.cuda.is_available()):
            return text
    except RuntimeError:
        kind = ""
    if kind == "cuda":
        raise RecipeError(f"--device {text!r}: no CUDA device is present here; take --device cpu.")
    raise RecipeError(
        f"--device {text!r} is none of auto, cpu, and CUDA devices that are present here (cuda,"
        " cuda:0 …)."
    )


def _show(done: "FilledCounts", share: "Share", clips: int, cache: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from modulate.utils.atomic_files import gib

    console = Console()
    console.width = max(console.width, 110)
    part = f" (share {share.number} of {share.of})" if share.of > 1 else ""
    table = Table(
        "", "", title=f"features{part}", title_justify="left", show_header=False, box=box.SIMPLE
    )
    for name, value in (
        ("clips", clips),
        ("already there", done.there),
        ("computed", done.computed),
        ("failed", len(done.failed)),
    ):
        table.add_row(name, f"{value:,}")
    table.add_row("on disk", f"{gib(done.bytes)} in {cache}")
    console.print(table)
    for clip, reason in done.failed:
        console.print(
            f"failed: {', '.join(clip.samples[:3])}{' …' if clip.samples[3:] else ''}: {reason}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
