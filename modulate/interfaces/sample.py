"""Samples of a data set: questions about clips of videos and about pictures."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modulate.errors import DataError


@dataclass(frozen=True)
class SampleClip:
    """A window of a video, or a picture, with its signals.

    Attributes:
        file: the video or the picture.
        window: (start, end) in seconds of the video. Of a picture, the time during which it was
            looked at, on the clock of its signals; (0, 0) stands for from 0 to the end of its
            signals.
        signals: file of each signal, by kind. One of several clips may have none: the host sees it,
            and its tokens get no residual.
        is_image: whether ``file`` is a picture.
    """

    file: Path
    window: tuple[float, float] = (0.0, 0.0)
    signals: dict[str, Path] = field(default_factory=dict)
    is_image: bool = False


@dataclass(frozen=True)
class Sample:
    """One question about one or more clips.

    Attributes:
        id: unique within the data set.
        task: name of the task, by which results are grouped.
        clips: videos and pictures, in the order in which the host sees them, before the question.
        question: the question's text.
        options: texts of the options; empty for free text.
        answer: index of the right option; None if there are no options, or if it is not known.
        answers: accepted answers of a question without options. The first one is trained on.
        groups: groups for statistics and splits, by name (``video``, ``viewer`` …). Without a group
            ``video``, samples that show a file in common form one.
        extra: further facts, for the data set's own use.

    Raises:
        DataError: there is no clip, or no such option as ``answer``.
    """

    id: str
    task: str
    clips: tuple[SampleClip, ...]
    question: str
    options: tuple[str, ...] = ()
    answer: int | None = None
    answers: tuple[str, ...] = ()
    groups: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        clips: Any = self.clips
        is_clips = isinstance(clips, tuple) and all(isinstance(clip, SampleClip) for clip in clips)
        if not (clips and is_clips):
            raise DataError(
                f"Sample {self.id}: its clips must be a tuple of one or more SampleClip; got"
                f" {clips!r}."
            )
        if self.answer is not None and self.answer not in range(len(self.options)):
            raise DataError(
                f"Sample {self.id}: its answer is the index of an option, of which there are"
                f" {len(self.options)}; got {self.answer!r}."
            )

    @property
    def clip(self) -> SampleClip:
        """The only clip. Raises :class:`DataError` if there are several."""
        if len(self.clips) > 1:
            raise DataError(f"Sample {self.id} has {len(self.clips)} clips, where one is needed.")
        return self.clips[0]

    @property
    def is_free_text(self) -> bool:
        """Whether it is answered in free text: it has no options."""
        return not self.options

    @property
    def files(self) -> frozenset[Path]:
        """The files of its clips."""
        return frozenset(clip.file for clip in self.clips)

    def has_signals(self, clip: SampleClip) -> bool:
        """Return whether ``clip`` has signals, or should: where no clip has any, all should."""
        return bool(clip.signals) or not any(other.signals for other in self.clips)
