"""The tabletop world as a data set: made on first use, then read exactly as StreamGaze is."""

from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, NonNegativeInt, PositiveFloat, PositiveInt

from modulate.interfaces.components import Dataset, Params, Reference, Sample
from modulate.interfaces.params import Departure
from modulate.interfaces.signal import Signal
from modulate_streamgaze.dataset import StreamGaze, StreamGazeParams, rule_departures
from modulate_streamgaze.questions import Item
from modulate_tabletop.make import WORLD, make_world, world_in
from modulate_tabletop.text import GAZE_ONLY


class TabletopParams(Params):
    """Which world, and what of it to use."""

    root: Path = Field(description="folder of the world; made there if it does not exist")
    train: NonNegativeInt = Field(200, description="videos to train on")
    val: NonNegativeInt = Field(20, description="videos to validate on")
    test: NonNegativeInt = Field(80, description="videos to test on")
    seed: NonNegativeInt = Field(0, description="seed of the world")
    objects: int = Field(
        13, ge=10, le=15, description="most objects on a table; at least two fewer"
    )
    drift: float = Field(
        4.0,
        ge=0,
        le=16,
        description="farthest that the camera moves from its centre, pixels of 128",
    )
    tasks: tuple[str, ...] | None = Field(
        GAZE_ONLY, description="stems of the question files to use; all ten if null"
    )
    window: PositiveFloat = Field(8.0, description="seconds of video seen before a question's time")
    fixations: tuple[Path, ...] = Field(
        (Path("fixations"),), description="folders of the fixation files, relative to the world's"
    )
    split: str = Field(
        "splits.json",
        description=(
            "file of the world that says which videos are for what: splits.json or"
            " splits_by_viewer.json"
        ),
    )
    fixation_rule: Literal["overlap", "midpoint"] = Field(
        "overlap", description="which fixations belong to a clip, as in `streamgaze`"
    )
    proactive_fixations: Literal["own", "origin"] = Field(
        "own", description="where fixations lie in the proactive tasks, as in `streamgaze`"
    )
    max_per_split: PositiveInt | None = Field(
        None,
        description=(
            "largest number of samples per split, taken evenly from the tasks; all if absent"
        ),
    )

    def departures(self) -> list[Departure]:
        """Name what GazeQwen's code does otherwise."""
        return rule_departures(self.fixation_rule, self.proactive_fixations)


class TabletopFiles(StreamGaze):
    """StreamGaze's files and, beside them, the positions of the hand."""

    def signals(self, item: Item) -> dict[str, Path]:
        """Return the gaze file and the hand file of a question's video."""
        return {**super().signals(item), "hand": self.root / "hand" / f"{item.stem}_hand.csv"}


class Tabletop(Dataset):
    """Questions about generated clips; see ``modulate_tabletop.questions`` for what they ask."""

    Params = TabletopParams

    def __init__(self, params: TabletopParams) -> None:
        self.params = params

    @cached_property
    def reader(self) -> TabletopFiles:
        """StreamGaze's reader, set to this world."""
        p = self.params
        limits = (
            {}
            if p.max_per_split is None
            else dict.fromkeys(("train", "val", "test"), p.max_per_split)
        )
        seen = dict.fromkeys(("past_seconds", "present_seconds", "proactive_seconds"), p.window)
        same = p.model_dump(
            include={"root", "tasks", "split", "fixations", "fixation_rule", "proactive_fixations"}
        )
        return TabletopFiles(StreamGazeParams.model_validate({**same, "limits": limits, **seen}))

    def prepare(self) -> None:
        """Make the world if it is not there; raises :class:`~modulate.errors.DataError` if another
        one is.
        """
        p = self.params
        make_world(p.root, **{key: getattr(p, key) for key in WORLD})
        self.reader.prepare()

    @classmethod
    def with_root(cls, params: BaseModel, root: Path) -> BaseModel:
        """Return the parameters for another world: the numbers of the one in ``root``, or those of
        ``params`` for one that is yet to be made there.
        """
        world = world_in(root.expanduser()) or {}
        return params.model_copy(
            update={"root": root, **{key: world[key] for key in WORLD if key in world}}
        )

    def samples(self, split: str) -> list[Sample]:
        """Return the questions of ``split``, or of all splits ("all"), in a fixed order."""
        return self.reader.samples(split)

    def clip_signal(self, sample: Sample, signal: Signal) -> Signal:
        """Return what of a video's signal belongs to a sample, as StreamGaze's reader decides."""
        return self.reader.clip_signal(sample, signal)

    def fingerprint(self) -> str:
        """Return a text that changes with the questions, the files, and what is used of them."""
        return f"tabletop-{self.reader.fingerprint()}"

    def reference(self) -> Reference:
        """Return StreamGaze's short names of the tasks; nothing is published on this world."""
        return Reference(labels=self.reader.reference().labels)

    def prompt(self, sample: Sample, answer: str = "letter") -> str:
        """Return the user's turn as StreamGaze's reader writes it."""
        return self.reader.prompt(sample, answer)
