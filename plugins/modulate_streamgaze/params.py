"""The parameters of StreamGaze as a data set."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from modulate.interfaces.components import Params
from modulate.interfaces.params import Departure, LocalPath
from modulate_streamgaze.fixations import GazeFiles

ADDED_LATER = ("fixation_rule", "proactive_fixations")
"""Parameters of later versions; with their defaults, they do not change a fingerprint."""


def rule_departures(fixation_rule: str, proactive_fixations: str) -> list[Departure]:
    """Return warnings about rules for fixations that follow GazeQwen's code."""
    departures: list[Departure] = []
    if fixation_rule == "midpoint":
        text = (
            "fixation_rule is `midpoint`: a fixation that lasts beyond the question, as the one"
            " that it asks about, is left out."
        )
        departures.append(("warning", text))
    if proactive_fixations == "origin":
        text = (
            "proactive_fixations is `origin`: in the proactive tasks every fixation lies at (0, 0),"
            " and tells nothing."
        )
        departures.append(("warning", text))
    return departures


class StreamGazeParams(Params):
    """Locations of the files, the part of a video that a question may see, and the split."""

    root: Annotated[Path, LocalPath()] = Field(
        description="folder that holds qa/*.json; the other paths are relative to it"
    )
    tasks: tuple[str, ...] | None = Field(
        None, description="stems of the question files to use; all existing files if absent"
    )
    videos: Path = Field(
        Path("videos/original_video"),
        description="folder of the videos; sub-folders are searched, too",
    )
    fixations: tuple[Path, ...] = Field(
        (Path("fixations"),),
        description=(
            "folders that contain <stem>_fixation_filtered.csv, also in sub-folders; if empty,"
            " samples have no gaze"
        ),
    )
    past_seconds: PositiveFloat | None = Field(
        None,
        description=(
            "seconds of video before a past question; from its start if absent (StreamGaze)"
        ),
    )
    present_seconds: PositiveFloat | None = Field(
        60.0,
        description=(
            "seconds of video before a present question (StreamGaze: 60); from its start if absent"
        ),
    )
    proactive_seconds: PositiveFloat | None = Field(
        None,
        description=(
            "seconds of video before a proactive test point; if absent, its input_video_clip, or"
            " from the start of the video (StreamGaze)"
        ),
    )
    gaze: GazeFiles | None = Field(
        None,
        description=(
            "gaze files of the original data sets; missing fixation files are computed from them,"
            " into the first folder of `fixations`"
        ),
    )
    fixation_rule: Literal["overlap", "midpoint"] = Field(
        "overlap",
        description=(
            "overlap: a fixation belongs to a clip if any part of it lies in the clip's window."
            " midpoint: if its midpoint does, both in float32, as in GazeQwen's code, which thereby"
            " drops the fixation that a question about the present asks about"
        ),
    )
    proactive_fixations: Literal["own", "origin"] = Field(
        "own",
        description=(
            "origin: every fixation of the proactive tasks is moved to (0, 0), as GazeQwen's"
            " evaluation does by mistake"
        ),
    )
    split: str = Field(
        "gazeqwen",
        description=(
            "gazeqwen: 70/15/15 by video, seed 42. participant: as close to 70/15/15 as whole"
            " participants allow. source: one data set is the test split. Or a JSON file with"
            " lists of videos under train, val, test, unused"
        ),
    )
    split_seed: int = Field(42, description="seed of the splits by participant and by source")
    test_source: str | None = Field(
        None,
        description="for split: source, the test data set: egtea, egoexolearn, holoassist …",
    )
    metadata: Path = Field(
        Path("metadata"),
        description=(
            "folder of CSVs with the participants and data sets of videos; used if it exists"
        ),
    )
    groups: Path | None = Field(
        None,
        description="CSV with the columns video, participant, source; overrides all other sources",
    )
    limits: dict[Literal["train", "val", "test", "all"], PositiveInt] = Field(
        default_factory=dict,
        description=(
            "largest number of samples per split, taken evenly from the tasks and from their whole"
            " files"
        ),
    )

    def departures(self) -> list[Departure]:
        """Return the settings that differ from GazeQwen's code."""
        return rule_departures(self.fixation_rule, self.proactive_fixations)

    @model_validator(mode="after")
    def _have_an_effect(self) -> "StreamGazeParams":
        if self.test_source is not None and self.split != "source":
            raise ValueError(
                f"`test_source` has no effect on split: {self.split}; it is for split: source"
            )
        if self.split == "source" and self.test_source is None:
            raise ValueError(
                "split: source needs `test_source`, the data set that is held out: egtea,"
                " egoexolearn, holoassist …"
            )
        if not self.fixations and (
            self.gaze is not None
            or self.fixation_rule != "overlap"
            or self.proactive_fixations != "own"
        ):
            raise ValueError(
                "`gaze`, `fixation_rule` and `proactive_fixations` have no effect without"
                " `fixations`"
            )
        return self
