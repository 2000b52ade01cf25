"""Scores of prepared samples' answers, in the form that a recipe asks for."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from modulate.answers.likelihood import (
    TokenScores,
    continued_scores,
    plain_scores,
    visual_end,
)
from modulate.inference.batching import LAST_LOGITS
from modulate.inference.pipeline import Pipeline
from modulate.inference.preparation import ReadySample
from modulate.inference.shared_prefix import shared_prefix, shared_prefix_forward
from modulate.modulation.clip_inputs import Rows

Condition = Callable[[Rows], AbstractContextManager[None]]
"""Conditions the forwards of a block on the clips of each row."""


class AnswerScorer:
    """Scores answers with a pipeline's host, which may have a modulation attached.

    Args:
        pipeline: of the recipe that says what is scored.
        model: the host as it is called.
        condition: conditions its forwards; with gradients, if the caller wants them.
    """

    def __init__(self, pipeline: Pipeline, model: nn.Module, condition: Condition) -> None:
        self._pipeline = pipeline
        self._recipe = pipeline.recipe
        self._host = pipeline.host
        self._visual_ids = list(pipeline.host.visual_ids.values())
        self._model = model
        self._condition = condition

    def groups(self, ready: Sequence[ReadySample], shared: int) -> list[list[ReadySample]]:
        """Return the samples that can be scored together, in one group or several.

        ``shared``: positions that all of them share, or 0.
        """
        if shared or not self._recipe.scores_whole_options:
            return [list(ready)]
        # Without padding between a prompt and its options, so that their positions are right.
        found: dict[int, list[ReadySample]] = {}
        for sample in ready:
            found.setdefault(visual_end(sample[0].inputs, self._visual_ids), []).append(sample)
        return list(found.values())

    def shared(self, ready: Sequence[ReadySample]) -> int:
        """Return how many leading positions of the prompts hold the same clips and signals."""
        signals = [[clip.signal for clip in clips] for _, clips in ready]
        return shared_prefix([sample for sample, _ in ready], self._visual_ids, signals)

    def option_scores(self, ready: Sequence[ReadySample], shared: int) -> Tensor:
        """Return (sample, option) fp32 scores of one of the :meth:`groups`; −inf for padding.

        These are the logits of single tokens, or the log-likelihoods of whole options.
        """
        if self._recipe.scores_whole_options:
            scores = self._continued(ready, shared)
            return scores.option_scores(self._recipe.likelihood)
        prepared = [sample for sample, _ in ready]
        rows = [clips for _, clips in ready]
        # With a shared prefix, `shared_prefix_forward` builds the inputs itself.
        batch = self._pipeline.collate(prepared, with_inputs=not shared)
        if shared:
            output = shared_prefix_forward(self._forward, self._model, prepared, rows[0], shared)
        else:
            output = self._forward(rows, **batch.inputs, **LAST_LOGITS)
        return batch.option_logits(output)

    def token_scores(self, ready: Sequence[ReadySample], shared: int) -> TokenScores:
        """Return the scores of the tokens of each sample's first answer: (sample, 1, token)."""
        if shared:
            return self._continued(ready, shared)
        prompts = [sample.inputs for sample, _ in ready]
        answers = [sample.answers[0] for sample, _ in ready]
        with self._condition([clips for _, clips in ready]):
            return plain_scores(
                self._model, self._host, prompts, answers, self._pipeline.batcher.pad_id
            )

    def _continued(self, ready: Sequence[ReadySample], shared: int) -> TokenScores:
        prompts = [sample.inputs for sample, _ in ready]
        rows = [clips for _, clips in ready]
        with self._condition(rows[:1] if shared else rows):
            return continued_scores(
                self._model,
                self._host,
                prompts,
                [sample.answers for sample, _ in ready],
                shared or visual_end(prompts[0], self._visual_ids),
                self._pipeline.batcher.pad_id,
                is_shared=bool(shared),
            )

    def _forward(self, rows: Rows, **inputs: Any) -> Any:
        with self._condition(rows):
            return self._model(**inputs)
