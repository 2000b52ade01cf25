"""Questions about one's own videos and pictures, answered by a modulated host."""

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from modulate.config.usage import Usage
from modulate.errors import DataError, RecipeError, VideoError, near_matches
from modulate.hosts.host import understand
from modulate.inference.answer import WITHOUT, Answer
from modulate.inference.answering import Answerer, Question
from modulate.inference.conversation import ConversationEncoder, Turn
from modulate.inference.media import Media, Visual, load_visual, paired
from modulate.inference.text_stream import TextStream
from modulate.interfaces.components import Backbone
from modulate.interfaces.prompt import TEMPLATES, fill_template, without_letters
from modulate.modulation.module import Modulation

MAX_NEW_TOKENS = 128
"""Default limit of a generated answer."""


class Assistant:
    """A loaded host with a modulation: answers questions about videos and pictures.

    The modulation is attached while a question is answered, and the host is untouched in between.
    Questions from several threads are answered one after the other.

    Args:
        host: a loaded transformers model.
        processor: its processor.
        modulation: the trained modulation; it moves to the host's device.
        backbone: encoder of raw frames; by default the one that the modulation names.
        usage: what the modulation reads and how it is asked; by default as it was trained.

    Raises :class:`RecipeError` where modulation says neither, :class:`HostError` for another host.
    """

    def __init__(
        self,
        host: nn.Module,
        processor: Any,
        modulation: Modulation,
        backbone: Backbone | None = None,
        usage: Usage | None = None,
    ) -> None:
        self.host = host
        self.processor = processor
        self.modulation = modulation.eval()
        self.usage = usage or _saved_usage(modulation)
        self.device = next(host.parameters()).device
        self.modulation.to(self.device)
        backbone = backbone or _saved_backbone(modulation)
        self.backbone = backbone.to(self.device).eval().requires_grad_(False)
        if backbone.d_features != modulation.config.d_features:
            raise RecipeError(
                f"The backbone's features are {backbone.d_features} wide; this modulation was"
                f" trained with {modulation.config.d_features}."
            )
        encoder = ConversationEncoder(
            understand(host), processor, self.backbone, self.usage.sampling
        )
        self._answerer = Answerer(encoder, host, self.modulation, self.usage)
        self._lock = threading.Lock()

    # --- questions

    def ask(
        self,
        media: Media | Sequence[Media],
        question: str,
        *,
        options: Sequence[str] | None = None,
        at: float | None = None,
        window: tuple[float, float] | None = None,
        compare: Sequence[str] = ("none",),
        stream: bool = False,
        max_new_tokens: int = MAX_NEW_TOKENS,
        generation: Mapping[str, Any] | None = None,
        **signals: Any,
    ) -> Any:
        """Answer a question about a video, a picture, or a list of them.

        Args:
            media: a path, a PIL image, a (height, width, 3) uint8 array, or
                :class:`modulate.Frames`; or a list of them.
            question: the question's text.
            options: answers to choose from; the result then has their probabilities.
            at: time of the question in the video, s: the host sees nothing after it. By default
                the video's end.
            window: (start, end) of the clip, s, in place of ``at``.
            compare: further conditions, "none", "blank" and "host", to answer under.
            stream: return a :class:`TextStream`, which yields the text as it is generated.
            max_new_tokens: limit of a generated answer.
            generation: further arguments of the host's ``generate``; by default it is greedy.
            signals: each kind's signal, such as ``gaze=``: a file, a signal, or
                :class:`modulate.RawSamples`; for several media a list. None: no residual.

        Returns:
            An :class:`Answer`, or a :class:`TextStream` with ``stream``.

        Raises :class:`ModulateError`: for missing files, times outside a video, signals of other
        kinds, and options that cannot be scored.
        """
        visuals = self.visuals(media, signals, at, window)
        asked = self._question(visuals, question, options)
        if not stream:
            return self.answer(asked, compare, max_new_tokens, generation or {})
        if asked.options:
            raise RecipeError("Options are scored, not generated: leave out `stream`.")
        return TextStream(
            lambda more: self.answer(
                asked, compare, max_new_tokens, {**(generation or {}), **more}
            ),
            self.processor.tokenizer,
        )

    def ask_many(
        self,
        questions: Iterable[Mapping[str, Any]],
        *,
        batch_size: int = 8,
        compare: Sequence[str] = ("none",),
        max_new_tokens: int = MAX_NEW_TOKENS,
        generation: Mapping[str, Any] | None = None,
    ) -> list[Answer]:
        """Answer many questions, in batches; the answers are in the order of the questions.

        ``questions``: the arguments of :meth:`ask` of each, as mappings with the keys ``media``,
        ``question`` and, where needed, ``options``, ``at``, ``window`` and the signals.
        """
        _check_conditions(compare)
        asked = [self._question_from(number, given) for number, given in enumerate(questions)]
        answers: dict[int, Answer] = {}
        for numbers in _batches(asked, batch_size):
            batch = [asked[number] for number in numbers]
            with self._lock:
                found = self._answerer.answers(batch, compare, max_new_tokens, generation or {})
            answers |= dict(zip(numbers, found, strict=True))
        return [answers[number] for number in range(len(asked))]

    def answer(
        self,
        asked: Question,
        compare: Sequence[str],
        max_new_tokens: int,
        generation: Mapping[str, Any],
    ) -> Answer:
        """Answer one question of a conversation; see :meth:`ask`."""
        _check_conditions(compare)
        with self._lock:
            return self._answerer.answers([asked], compare, max_new_tokens, generation)[0]

    def chat(
        self,
        media: Media | Sequence[Media] = (),
        *,
        at: float | None = None,
        window: tuple[float, float] | None = None,
        system: str | None = None,
        **signals: Any,
    ) -> "Chat":
        """Begin a conversation about a video, a picture, or a list of them.

        ``system``: text of a system message. For the others see :meth:`ask`.
        """
        visuals = self.visuals(media, signals, at, window)
        first = (Turn("system", (system,)),) if system else ()
        return Chat(self, first, visuals)

    # --- making questions

    def visuals(
        self,
        media: Media | Sequence[Media],
        signals: Mapping[str, Any],
        at: float | None = None,
        window: tuple[float, float] | None = None,
    ) -> list[Visual]:
        """Return media with their signals, as :meth:`ask` takes them, ready for a conversation."""
        pairs = paired(media, signals)
        if len(pairs) > 1 and (at is not None or window is not None):
            raise VideoError(
                "`at` and `window` belong to one video. For several, pass modulate.Frames of each."
            )
        if at is not None and window is not None:
            raise VideoError("Give either `at` or `window`, not both.")
        sampling = self.usage.sampling
        return [
            load_visual(medium, own, self.usage.signal, sampling, window, at)
            for medium, own in pairs
        ]

    def _question_from(self, number: int, given: Mapping[str, Any]) -> Question:
        known = ("media", "question", "options", "at", "window")
        try:
            media = given["media"]
            question = given["question"]
        except KeyError as error:
            raise DataError(f"Question {number} has no {error.args[0]!r}.") from error
        signals = {key: value for key, value in given.items() if key not in known}
        visuals = self.visuals(media, signals, given.get("at"), given.get("window"))
        return self._question(visuals, question, given.get("options"))

    def _question(
        self,
        visuals: Sequence[Visual],
        question: str,
        options: Sequence[str] | None,
    ) -> Question:
        if not question.strip():
            raise DataError("The question is empty.")
        labels = tuple(options or ())
        # The prompt adds letters of its own.
        choices, _ = without_letters(labels)
        if options is not None:
            _check_options(choices)
        template = self.usage.template
        if not choices and "{options}" in template:
            template = TEMPLATES["text"]  # it was never asked without options
        text = fill_template(template, question, choices)
        return Question((Turn("user", (*visuals, text)),), choices, labels)


class Chat:
    """A conversation about clips and pictures, one question after the other.

    Every turn goes through the host with all turns before it, and is conditioned with the signals
    of all clips so far.

    Attributes:
        turns: the turns so far.
    """

    def __init__(
        self, assistant: Assistant, turns: Sequence[Turn], visuals: Sequence[Visual]
    ) -> None:
        self.turns = tuple(turns)
        self._assistant = assistant
        self._visuals = tuple(visuals)

    def say(
        self,
        text: str,
        *,
        media: Media | Sequence[Media] = (),
        at: float | None = None,
        window: tuple[float, float] | None = None,
        compare: Sequence[str] = (),
        max_new_tokens: int = MAX_NEW_TOKENS,
        generation: Mapping[str, Any] | None = None,
        **signals: Any,
    ) -> Answer:
        """Say something, and return the host's answer, which joins the conversation.

        ``media``: further clips or pictures, with their ``signals``. For the others see
        :meth:`Assistant.ask`.
        """
        assistant = self._assistant
        visuals = (*self._visuals, *assistant.visuals(media, signals, at, window))
        if not text.strip():
            raise DataError("There is no text to say.")
        turns = (*self.turns, Turn("user", (*visuals, text)))
        answer = assistant.answer(Question(turns), compare, max_new_tokens, generation or {})
        self.turns = (*turns, Turn("assistant", (answer.text,)))
        self._visuals = ()
        return answer


def _saved_usage(modulation: Modulation) -> Usage:
    usage = modulation.config.usage
    if usage is None:
        raise RecipeError(
            "This modulation does not say how it is used, as those of version 0.1 and those that no"
            " recipe trained. Pass usage=modulate.Usage.of(recipe), or build one."
        )
    return usage


def _saved_backbone(modulation: Modulation) -> Backbone:
    spec = modulation.config.backbone
    if spec is None:
        raise RecipeError(
            "This modulation names no backbone. Pass the one whose features it was trained with:"
            " backbone=…."
        )
    backbone: Backbone = spec.build("backbone")
    return backbone


def _batches(asked: Sequence[Question], size: int) -> list[list[int]]:
    """Return the numbers of the questions that are answered together: of one kind, in order."""
    if size < 1:
        raise RecipeError(f"A batch has at least one question; got batch_size={size}.")
    scored = [number for number, each in enumerate(asked) if each.options]
    generated = [number for number, each in enumerate(asked) if not each.options]
    return [
        numbers[start : start + size]
        for numbers in (scored, generated)
        for start in range(0, len(numbers), size)
    ]


def _check_options(options: Sequence[str]) -> None:
    distinct = len(set(options)) == len(options)
    if len(options) < 2 or not distinct or not all(option.strip() for option in options):
        raise DataError(
            f"A question needs 2 or more different, non-empty options; got {list(options)}."
        )


def _check_conditions(compare: Sequence[str]) -> None:
    if isinstance(compare, str):
        raise RecipeError(f"`compare` is a list of conditions: compare=({compare!r},).")
    for condition in compare:
        if condition not in WITHOUT:
            raise RecipeError(
                f"{condition!r} is no condition to compare with. {near_matches(condition, WITHOUT)}"
            )
