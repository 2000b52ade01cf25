"""The tabletop world as a data set: generated on first use, then read like StreamGaze."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, NonNegativeInt, PositiveFloat, PositiveInt

from modulate.interfaces.components import Dataset, Params, Reference
from modulate.interfaces.inspection import Inspection
from modulate.interfaces.params import Departure, LocalPath
from modulate.interfaces.prompt import TEMPLATES, AnswerForm
from modulate.interfaces.sample import Sample, SampleClip
from modulate.interfaces.signal import Signal
from modulate_streamgaze.dataset import StreamGaze
from modulate_streamgaze.params import StreamGazeParams, rule_departures
from modulate_streamgaze.questions import Item
from modulate_tabletop.make import WORLD, jobs, make_world, world_in
from modulate_tabletop.naming import Naming
from modulate_tabletop.text import EASY, GAZE_ONLY, NAMING


class TabletopParams(Params):
    """Numbers that define the world, and the part of it to use."""

    root: Annotated[Path, LocalPath()] = Field(
        description="folder of the world; generated there if it does not exist"
    )
    train: NonNegativeInt = Field(200, description="number of training videos")
    val: NonNegativeInt = Field(20, description="number of validation videos")
    test: NonNegativeInt = Field(80, description="number of test videos")
    seed: NonNegativeInt = Field(0, description="seed of the world")
    objects: int = Field(
        13,
        ge=10,
        le=15,
        description="largest number of objects on a table; tables have up to two fewer",
    )
    drift: float = Field(
        4.0,
        ge=0,
        le=16,
        description="largest shift of the camera from its center, pixels of 128",
    )
    tasks: tuple[str, ...] | None = Field(
        GAZE_ONLY,
        description=(
            "stems of the question files to use; all ten if null. `present_object_naming` asks, at"
            " the moments of the easy questions, for class and color, which have two words"
        ),
    )
    window: PositiveFloat = Field(
        8.0, description="seconds of video windows before a question's time"
    )
    fixations: tuple[Path, ...] = Field(
        (Path("fixations"),), description="folders of the fixation files, relative to the world's"
    )
    split: str = Field(
        "splits.json",
        description=(
            "file of the world that assigns videos to splits: splits.json or splits_by_viewer.json"
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
        """Return the settings that differ from GazeQwen's code."""
        return rule_departures(self.fixation_rule, self.proactive_fixations)


class TabletopFiles(StreamGaze):
    """StreamGaze's files, and the positions of the hand."""

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
        params = self.params
        limits = (
            {}
            if params.max_per_split is None
            else dict.fromkeys(("train", "val", "test"), params.max_per_split)
        )
        windows = dict.fromkeys(
            ("past_seconds", "present_seconds", "proactive_seconds"), params.window
        )
        shared = params.model_dump(
            include={"root", "split", "fixations", "fixation_rule", "proactive_fixations"}
        )
        tasks = params.tasks
        if tasks is not None:
            tasks = tuple(dict.fromkeys(EASY if task == NAMING else task for task in tasks))
        return TabletopFiles(
            StreamGazeParams.model_validate({**shared, "tasks": tasks, "limits": limits, **windows})
        )

    @property
    def asks_names(self) -> bool:
        """Whether naming questions are among the tasks."""
        return NAMING in (self.params.tasks or ())

    @cached_property
    def naming(self) -> Naming:
        """Makes naming questions of easy ones."""
        return Naming(jobs(**{key: getattr(self.params, key) for key in WORLD}))

    def prepare(self) -> None:
        """Generate the world if it does not exist.

        Raises :class:`~modulate.errors.DataError` if the folder holds another world.
        """
        params = self.params
        make_world(params.root, **{key: getattr(params, key) for key in WORLD})
        self.reader.prepare()

    def inspect(self, inspection: Inspection) -> Mapping[str, Sequence[Sample]]:
        """Add StreamGaze's figures of every task, and what is wrong with the files."""
        return self.reader.inspect(inspection)

    @classmethod
    def with_root(cls, params: BaseModel, root: Path) -> BaseModel:
        """Return the parameters of the world in ``root``; a new one takes ``params``."""
        world = world_in(root.expanduser()) or {}
        return params.model_copy(
            update={"root": root, **{key: world[key] for key in WORLD if key in world}}
        )

    def samples(self, split: str) -> list[Sample]:
        """Return the questions of ``split``, or of all splits ("all"), in a fixed order."""
        samples = self.reader.samples(split)
        if not self.asks_names:
            return samples
        easy = [sample for sample in samples if sample.task == EASY]
        if EASY not in (self.params.tasks or ()):
            samples = [sample for sample in samples if sample.task != EASY]
        samples += map(self.naming.ask, easy)
        most = self.params.max_per_split or len(samples)
        if split != "all" and most < len(samples):
            samples = [samples[i * len(samples) // most] for i in range(most)]
        return samples

    def clip_signal(self, sample: Sample, clip: SampleClip, signal: Signal) -> Signal:
        """Return the part of a video's signal that belongs to a clip, by StreamGaze's rules."""
        return self.reader.clip_signal(sample, clip, signal)

    def fingerprint(self) -> str:
        """Return a text that changes with the questions, the files, and the part in use."""
        naming = "-naming" if self.asks_names else ""
        return f"tabletop-{self.reader.fingerprint()}{naming}"

    @classmethod
    def template(cls, answer: AnswerForm = "letter") -> str:
        """Return the template of the user's turn; the small host knows one for all open answers."""
        return TEMPLATES["word" if answer == "text" else answer]

    def reference(self) -> Reference:
        """Return StreamGaze's short names of the tasks; no published figures exist."""
        return Reference(labels=self.reader.reference().labels)
