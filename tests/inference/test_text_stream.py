"""modulate.inference.text_stream without a host: pieces, the end, errors, leaving early."""

import threading

import pytest
import torch

from modulate.errors import ConditioningError, HostError
from modulate.inference.answer import Answer
from modulate.inference.text_stream import TextStream


def generating(tokenizer, words, done):
    """What an assistant does: generate until it is told to stop, then return the answer."""

    def work(more):
        streamer = more["streamer"]
        (stop,) = more["stopping_criteria"]
        streamer.put(torch.tensor([tokenizer.encode("What ?")]))  # the prompt, which is left out
        pieces = []
        for word in words:
            if bool(stop(torch.zeros(1, 1, dtype=torch.long), None).all()):
                break
            streamer.put(torch.tensor(tokenizer.encode(word)))
            pieces.append(word)
        streamer.end()
        done.append(pieces)
        return Answer("signal", " ".join(pieces))

    return work


def test_pieces_come_in_order_and_then_there_is_the_answer(tokenizer):
    stream = TextStream(generating(tokenizer, ["red", "plate", "box"], []), tokenizer)
    assert "".join(stream).split() == ["red", "plate", "box"]
    assert stream.answer.text == "red plate box"


def test_generation_begins_with_the_first_piece_asked_for_and_ends_with_the_loop(tokenizer):
    done = []
    begun = threading.Event()
    endless = generating(tokenizer, ["plate"] * 10_000_000, done)

    def work(more):
        begun.set()
        return endless(more)

    stream = TextStream(work, tokenizer)
    assert not begun.is_set()
    next(pieces := iter(stream))
    pieces.close()
    assert 0 < len(done[0]) < 10_000_000


def test_an_error_is_raised_where_the_pieces_are_read_and_leaves_no_answer(tokenizer):
    def work(more):
        raise HostError("no such host")

    stream = TextStream(work, tokenizer)
    with pytest.raises(HostError, match="no such host"):
        list(stream)
    with pytest.raises(ConditioningError, match="not complete"):
        _ = stream.answer
