"""``modulate features``: fill the feature cache before training."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modulate.cli.arguments import DEFAULT_CACHE, Cache, Overrides, Recipe, Trust

if TYPE_CHECKING:
    from modulate.data.clip_shards import Shard
    from modulate.data.precompute import FilledCounts


def features(
    recipe: Recipe,
    overrides: Overrides = None,
    split: Annotated[
        list[str] | None,
        typer.Option(help="Split to compute; repeat for several. By default train, val and test."),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER/OF",
            help=(
                "Compute only this share of the videos, such as 1/8; other machines take 2/8 to"
                " 8/8."
            ),
        ),
    ] = None,
    cache: Cache = DEFAULT_CACHE,
    device: Annotated[
        str,
        typer.Option(
            help=(
                "Device of the backbone: cpu, cuda, cuda:0 …; auto takes CUDA if present (by"
                " LOCAL_RANK among several devices), else the CPU."
            )
        ),
    ] = "auto",
    trust: Trust = False,
) -> None:
    """Compute and cache the backbone's features of all clips.

    Covers every clip that the recipe's training and evaluation use, and its decoded frames if
    features.frames_gib is set. Does not load the host. Under torchrun or accelerate launch every
    process takes a share; with --shard, separate machines do. Ctrl-C (SIGINT, exit code 130) or
    SIGTERM (143) stops after the current clip. The same command computes what is still missing.
    """
    import torch

    from modulate.cli.progress import display
    from modulate.config.recipe import load_recipe, refuse_remote_code
    from modulate.data.clip_shards import SPLITS, Shard, planned_clips
    from modulate.data.feature_extractor import FeatureExtractor
    from modulate.data.precompute import (
        FeatureFiller,
        SpaceEstimator,
        refuse_failures,
        refuse_too_small,
    )
    from modulate.errors import DataError
    from modulate.utils.atomic_files import refuse_unwritable
    from modulate.utils.interrupts import graceful

    loaded = load_recipe(recipe, overrides or ())
    share = Shard.from_environment(shard)
    if not trust:
        refuse_remote_code(loaded)
    refuse_unwritable(cache, "--cache")
    # One terminal has room for the progress of one process.
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    with display(first) as progress:
        progress.set_status("looking for missing features")
        extractor = FeatureExtractor(
            loaded, cache, torch.device(_device(device)), require_disk=True
        )
        extractor.make_data()
        everything = planned_clips(extractor, split or SPLITS)
        if not everything:
            raise DataError(
                f"There are no samples in {', '.join(split or SPLITS)}. Name another --split."
            )
        refuse_too_small(extractor, SpaceEstimator(extractor).of(everything))
        own = share.clips(everything)
        with graceful() as stop:
            done = FeatureFiller(
                extractor, lambda n: progress.advance("features", n, len(own)), stop
            ).fill(own)
    _show(done, share, len(own), cache)
    refuse_failures(extractor, own, done)


def _device(text: str) -> str:
    """Return torch's name of the device that --device asks for."""
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
        raise RecipeError(f"--device {text!r}: this machine has no CUDA device; use --device cpu.")
    raise RecipeError(
        f"--device {text!r} is not a device of this machine; use auto, cpu, or a CUDA device that"
        " is present (cuda, cuda:0 …)."
    )


def _show(done: "FilledCounts", share: "Shard", clips: int, cache: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from modulate.utils.atomic_files import format_bytes

    console = Console()
    console.width = max(console.width, 110)
    part = f" (share {share.number} of {share.of})" if share.of > 1 else ""
    table = Table(
        "", "", title=f"features{part}", title_justify="left", show_header=False, box=box.SIMPLE
    )
    for name, value in (
        ("clips", clips),
        ("already there", done.cached),
        ("computed", done.computed),
        ("failed", len(done.failed)),
    ):
        table.add_row(name, f"{value:,}")
    table.add_row("on disk", f"{format_bytes(done.bytes)} in {cache}")
    console.print(table)
    for clip, reason in done.failed:
        console.print(
            f"failed: {', '.join(clip.samples[:3])}{' …' if clip.samples[3:] else ''}: {reason}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
