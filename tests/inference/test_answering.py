"""modulate.inference.answering: batches, reports, and where a text ends."""

import numpy as np
import pytest
import torch

from modulate.answers.likelihood import extend
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


OPTIONS = ("red plate", "blue bowl", "white mug")


@pytest.mark.parametrize("likelihood", ["sum", "mean"])
def test_options_may_be_scored_by_the_likelihood_of_their_words(
    assistant, four_seconds, likelihood, monkeypatch
):
    usage = assistant.usage.model_copy(update={"answer": "likelihood", "likelihood": likelihood})
    monkeypatch.setattr(assistant._answerer, "_usage", usage)
    answer = assistant.ask(four_seconds, "What?", options=OPTIONS, gaze=GAZE, at=3.0)
    found = [answer.probabilities[option] for option in OPTIONS]
    # By hand: one conditioned forward of prompt and option for each.
    visuals = assistant.visuals(four_seconds, {"gaze": GAZE}, 3.0, None)
    (turn,) = assistant._question(visuals, "What?", OPTIONS).turns
    encoded = assistant._answerer._encoder.encode([turn])
    tokenizer = assistant.processor.tokenizer
    scores = []
    with assistant.modulation.attached(assistant.host) as attachment, torch.inference_mode():
        for option in OPTIONS:
            ids = torch.tensor(tokenizer.encode(option))
            inputs = extend(encoded.inputs, ids)
            with attachment.condition([encoded.clips]):
                logits = assistant.host(**inputs).logits[0, -3:-1].log_softmax(-1)
            own = logits[[0, 1], ids]
            scores.append(own.sum() if likelihood == "sum" else own.mean())
    assert found == pytest.approx(torch.stack(scores).softmax(0).tolist(), abs=1e-4)
    assert answer.text == max(OPTIONS, key=answer.probabilities.__getitem__)


def test_questions_of_different_clips_are_scored_in_one_batch_as_alone(
    assistant, four_seconds, monkeypatch
):
    usage = assistant.usage.model_copy(update={"answer": "text"})
    monkeypatch.setattr(assistant._answerer, "_usage", usage)
    questions = [
        {"media": four_seconds, "question": "What?", "gaze": GAZE, "at": 3.0, "options": OPTIONS},
        {"media": PIXELS, "question": "Which?", "gaze": GAZE, "options": OPTIONS[:2]},
    ]
    together = assistant.ask_many(questions)
    for question, answer in zip(questions, together, strict=True):
        (alone,) = assistant.ask_many([question])
        assert answer.probabilities == pytest.approx(alone.probabilities, abs=1e-4)
        assert answer.report.tokens > 0
