"""modulate.inference.answering: batches, reports, and where a text ends."""

import numpy as np
import pytest

from modulate_gaze.scanpath import Scanpath

GAZE = Scanpath([(0.2, 0.3, 1.0, 0.8), (0.8, 0.6, 2.5, 1.0)])
PIXELS = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)


def test_each_question_of_a_batch_has_its_part_of_the_report(assistant, four_seconds):
    questions = [
        {"media": four_seconds, "question": "What?", "gaze": GAZE, "at": 3.0},
        {"media": PIXELS, "question": "What?", "gaze": None},
        {"media": PIXELS, "question": "What?", "gaze": GAZE},
        {"media": four_seconds, "question": "What?", "gaze": GAZE.blank(), "at": 3.0},
    ]
    answers = assistant.ask_many(questions, max_new_tokens=1, compare=())
    assert [answer.report.steps for answer in answers] == [(2,), (), (1,), (2,)]
    assert [answer.report.active_steps for answer in answers] == [(2,), (), (1,), (0,)]


def test_a_text_that_was_cut_off_says_so(assistant, four_seconds, monkeypatch):
    ask = {"gaze": GAZE, "max_new_tokens": 2, "compare": ()}
    assert not assistant.ask(four_seconds, "What?", **ask).is_complete
    # Whatever the host says second ends its text now.
    first = assistant.ask(four_seconds, "What?", **ask | {"max_new_tokens": 1}).text
    both = assistant.ask(four_seconds, "What?", **ask).text
    second = both.removeprefix(first).strip()
    end = assistant.processor.tokenizer.convert_tokens_to_ids(second)
    monkeypatch.setattr(assistant.host.generation_config, "eos_token_id", end)
    assert assistant.ask(four_seconds, "What?", **ask).is_complete


def test_sampling_is_up_to_the_caller(assistant, four_seconds):
    ask = {"gaze": GAZE, "max_new_tokens": 8, "compare": ()}
    drawn = {
        assistant.ask(
            four_seconds, "What?", generation={"do_sample": True, "temperature": 5.0}, **ask
        ).text
        for _ in range(4)
    }
    assert len(drawn) > 1


@pytest.mark.parametrize("letters", [("a plate", "a bowl"), ("a plate", "a bowl", "a box")])
def test_options_may_be_scored_by_letter(assistant, four_seconds, letters, monkeypatch):
    usage = assistant.usage.model_copy(
        update={"answer": "letter", "template": "{question}\n{options}"}
    )
    monkeypatch.setattr(assistant._answerer, "_usage", usage)
    answer = assistant.ask(four_seconds, "Which?", options=letters, gaze=GAZE)
    assert list(answer.probabilities) == list(letters)
    assert sum(answer.probabilities.values()) == pytest.approx(1.0)
