"""Generated text, handed over while it is generated."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import StoppingCriteria, TextStreamer

from modulate.errors import ConditioningError
from modulate.inference.answer import Answer


class _Pieces(TextStreamer):
    """Puts whole words into a queue as soon as their tokens are there."""

    def __init__(self, tokenizer: Any, pieces: "queue.SimpleQueue[str | None]") -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._pieces = pieces

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._pieces.put(text)


class _Stop(StoppingCriteria):
    """Ends every row's generation once ``event`` is set."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        stop = torch.full((len(input_ids),), self._event.is_set(), device=input_ids.device)
        return stop  # type: ignore[return-value]  # transformers' own annotation


class TextStream:
    """An answer that is being generated: iterate over it for the pieces of text.

    Generation runs in a thread of its own and begins with the first piece asked for. Errors are
    raised where the pieces are read. Leaving the loop early, or :meth:`close`, stops generation.

    Args:
        work: generates the answer with these further arguments of ``generate``.
        tokenizer: decodes the tokens.
    """

    def __init__(self, work: Callable[[dict[str, Any]], Answer], tokenizer: Any) -> None:
        self._work = work
        self._pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._streamer = _Pieces(tokenizer, self._pieces)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="modulate-stream", daemon=True)
        self._answer: Answer | None = None
        self._error: BaseException | None = None

    @property
    def answer(self) -> Answer:
        """The whole answer, once the text has ended.

        Raises :class:`ConditioningError` before.
        """
        if self._answer is None:
            raise ConditioningError(
                "The answer is not complete: read all pieces of its text first."
            )
        return self._answer

    def __iter__(self) -> Iterator[str]:
        if self._thread.ident is not None:
            raise ConditioningError("The pieces of an answer can be read once only.")
        self._thread.start()
        try:
            while (piece := self._pieces.get()) is not None:
                yield piece
        finally:
            self.close()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Stop generation and wait for its thread."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._answer = self._work(
                {"streamer": self._streamer, "stopping_criteria": [_Stop(self._stop)]}
            )
        except BaseException as error:  # raised again by the reader
            self._error = error
        finally:
            self._pieces.put(None)
