"""Answers to single questions, with what the host says without the signal beside them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from modulate.errors import RecipeError
from modulate.modulation.attachment import AttachmentReport

WITHOUT = {
    "none": "no residual; LoRA stays on",
    "blank": "a blank signal",
    "host": "no residual and no LoRA: the bare host",
}
"""The three ways of answering without the signal."""


@dataclass(frozen=True)
class Answer:
    """An answer under one condition.

    Attributes:
        condition: "signal": with the signal. Otherwise one of :data:`WITHOUT`.
        text: the generated text, or the most probable option.
        probabilities: of each option offered, summing to 1; None for a generated text.
        is_complete: whether a generated text ended by itself, before ``max_new_tokens``.
        report: what the modulation did; None without residuals.
        without: the same question answered without the signal, by condition.
    """

    condition: str
    text: str
    probabilities: dict[str, float] | None = None
    is_complete: bool = True
    report: AttachmentReport | None = None
    without: Mapping[str, "Answer"] = field(default_factory=dict)

    @property
    def without_signal(self) -> "Answer":
        """The answer without residuals, LoRA still on: condition "none"."""
        return self._compared("none")

    @property
    def blank_signal(self) -> "Answer":
        """The answer with a blank signal: condition "blank"."""
        return self._compared("blank")

    @property
    def bare_host(self) -> "Answer":
        """The host's own answer, without residuals and LoRA: condition "host"."""
        return self._compared("host")

    def _compared(self, condition: str) -> "Answer":
        if condition == self.condition:
            return self
        if condition not in self.without:
            raise RecipeError(
                f"The question was not asked under the condition {condition!r}; ask it with"
                f" compare=({condition!r},)."
            )
        return self.without[condition]

    def beside(self, others: "list[Answer]") -> "Answer":
        """Return this answer with ``others`` beside it."""
        return replace(self, without={other.condition: other for other in others})
