"""An assistant around the shipped host, with a modulation whose residuals are not zero."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image

from modulate import ClipInput, Frames, Modulation
from modulate.data.alignment import align
from modulate.data.video import read_frames
from modulate.errors import (
    ConditioningError,
    DataError,
    MissingFileError,
    RecipeError,
    SignalError,
    VideoError,
)
from modulate.hosts.host import understand
from modulate.inference.assistant import Assistant
from modulate.interfaces.messages import Message, VideoClip
from modulate.interfaces.signal import RawSamples
from modulate_gaze.scanpath import Scanpath
from modulate_hosts.contract.suite import our_hooks
from modulate_hosts.qwen2_5_vl import Qwen25VL

QUESTION = "What is the viewer looking at now?"
OPTIONS = ("plate", "bowl", "box", "fork")
GAZE = Scanpath([(0.2, 0.3, 1.0, 0.8), (0.8, 0.6, 2.5, 1.0)])


@pytest.fixture
def video(four_seconds):
    return four_seconds


def by_hand(assistant, video, text, times=(0.0, 1.0, 2.0, 3.0)):
    """The model inputs and the conditioning that ``assistant`` should make of a question."""
    frames = read_frames(video, times)
    window = (times[0], times[-1])
    messages = [Message("user", (VideoClip(frames, window), text))]
    encoded = understand(assistant.host).encode(assistant.processor, messages)
    raw = assistant.backbone(torch.from_numpy(frames.images), frames.times)
    clip = ClipInput(GAZE.within(*window), encoded.grids[0], align(raw, encoded.grids[0]))
    return encoded.inputs, clip


def generated(assistant, inputs, rows):
    with (
        torch.inference_mode(),
        assistant.modulation.attached(assistant.host) as attachment,
        attachment.maybe_condition(rows),
    ):
        ids = assistant.host.generate(**inputs, max_new_tokens=5, do_sample=False)
        report = attachment.report()
    text = assistant.processor.tokenizer.decode(
        ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    return text.strip(), report


def test_a_text_is_what_generate_gives_under_the_conditioning(assistant, video):
    answer = assistant.ask(
        video, QUESTION, gaze=GAZE, at=3.0, max_new_tokens=5, compare=("none", "blank", "host")
    )
    inputs, clip = by_hand(assistant, video, f"Question: {QUESTION}\nThe answer is:")
    text, _ = generated(assistant, inputs, [[clip]])
    assert answer.text == text
    assert answer.condition == "signal"
    assert answer.report.steps == (2,)
    assert answer.report.active_steps == (2,)
    bare, _ = generated(assistant, inputs, [])
    assert answer.without_signal.text == answer.bare_host.text == bare != text
    blank = ClipInput(clip.signal.blank(), clip.grid, clip.features)
    assert answer.blank_signal.text == generated(assistant, inputs, [[blank]])[0]
    assert answer.blank_signal.report.active_steps == (0,)
    assert not our_hooks(assistant.host)


def test_options_get_the_probabilities_of_a_conditioned_forward(assistant, video):
    answer = assistant.ask(video, QUESTION, options=OPTIONS, gaze=GAZE, at=3.0)
    inputs, clip = by_hand(assistant, video, f"Question: {QUESTION}\nThe answer is:")
    with (
        torch.inference_mode(),
        assistant.modulation.attached(assistant.host) as attachment,
        attachment.condition([[clip]]),
    ):
        logits = assistant.host(**inputs).logits[0, -1]
    ids = assistant.processor.tokenizer.convert_tokens_to_ids(list(OPTIONS))
    expected = logits[ids].softmax(0)
    assert list(answer.probabilities) == list(OPTIONS)
    assert torch.allclose(torch.tensor(list(answer.probabilities.values())), expected, atol=1e-5)
    assert answer.text == OPTIONS[int(expected.argmax())]
    assert sum(answer.without_signal.probabilities.values()) == pytest.approx(1.0)
    assert answer.without_signal.probabilities != pytest.approx(answer.probabilities, abs=1e-3)


def test_signals_come_as_files_signals_or_samples(assistant, video, tmp_path):
    path = tmp_path / "gaze.csv"
    path.write_text(
        "start_time,end_time,center_x,center_y\n0.6,1.4,0.2,0.3\n2.0,3.0,0.8,0.6\n", "utf-8"
    )
    rows = np.full((90, 2), np.nan)
    rows[18:42] = (0.2, 0.3)
    rows[60:90] = (0.8, 0.6)
    answers = [
        assistant.ask(video, QUESTION, options=OPTIONS, gaze=gaze, at=3.0)
        for gaze in (GAZE, path, str(path), RawSamples(rows, rate=30.0))
    ]
    for answer in answers[1:]:
        assert answer.probabilities == pytest.approx(answers[0].probabilities, abs=1e-4)


def test_a_clip_ends_with_the_question_or_with_the_video(assistant, video):
    ask = {"options": OPTIONS, "gaze": GAZE, "compare": ()}
    at_end = assistant.ask(video, QUESTION, **ask)
    assert at_end.probabilities == assistant.ask(video, QUESTION, at=3.9, **ask).probabilities
    whole = assistant.ask(video, QUESTION, at=3.0, **ask)
    assert (
        whole.probabilities
        == assistant.ask(video, QUESTION, window=(0.0, 3.0), **ask).probabilities
    )
    frames = read_frames(video, (0.0, 1.0, 2.0, 3.0))
    assert whole.probabilities == assistant.ask(frames, QUESTION, **ask).probabilities
    with pytest.raises(VideoError, match="at 9 s lies outside"):
        assistant.ask(video, QUESTION, at=9.0, **ask)


def test_pictures_come_as_files_arrays_and_pil_images(assistant, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    path = tmp_path / "kitchen.png"
    Image.fromarray(pixels).save(path)
    answers = [
        assistant.ask(picture, QUESTION, options=OPTIONS, gaze=GAZE)
        for picture in (path, pixels, Image.fromarray(pixels))
    ]
    assert answers[0].report.steps == answers[0].report.active_steps == (1,)
    assert answers[0].report.tokens > 0
    for answer in answers[1:]:
        assert answer.probabilities == answers[0].probabilities
    assert answers[0].without_signal.probabilities != answers[0].probabilities


def test_several_clips_and_pictures_each_have_their_signal(assistant, video):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    both = assistant.ask([video, pixels], QUESTION, gaze=[GAZE, GAZE], max_new_tokens=2)
    assert both.report.steps == (2, 1)
    only = assistant.ask([video, pixels], QUESTION, gaze=[None, GAZE], max_new_tokens=2)
    assert only.report.steps == (1,)
    with pytest.raises(SignalError, match="2 clips or pictures need gaze= a list"):
        assistant.ask([video, pixels], QUESTION, gaze=GAZE)


def test_many_questions_are_answered_as_one_by_one(assistant, video):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    questions = [
        {"media": video, "question": QUESTION, "gaze": GAZE, "at": 3.0, "options": OPTIONS},
        {"media": video, "question": "What color?", "gaze": GAZE},
        {"media": pixels, "question": QUESTION, "gaze": None},
        {"media": video, "question": "Which?", "gaze": GAZE, "options": OPTIONS[:2]},
        {"media": video, "question": QUESTION, "gaze": GAZE.blank(), "at": 2.0},
    ]
    together = assistant.ask_many(questions, max_new_tokens=4)
    for given, answer in zip(questions, together, strict=True):
        medium, question, *_ = given.values()
        more = {key: given[key] for key in given if key not in ("media", "question")}
        if "options" not in more:
            more["max_new_tokens"] = 4
        alone = assistant.ask(medium, question, **more)
        assert answer.text == alone.text
        if alone.probabilities:
            assert answer.probabilities == pytest.approx(alone.probabilities, abs=1e-4)
        assert answer.without_signal.text == alone.without_signal.text


def test_a_stream_yields_the_text_and_then_has_the_answer(assistant, video):
    ask = {"gaze": GAZE, "at": 3.0, "max_new_tokens": 6}
    stream = assistant.ask(video, QUESTION, stream=True, **ask)
    with pytest.raises(ConditioningError, match="not complete"):
        _ = stream.answer
    text = "".join(stream)
    whole = assistant.ask(video, QUESTION, **ask)
    assert text.strip() == stream.answer.text == whole.text
    assert stream.answer.without_signal.text == whole.without_signal.text
    with pytest.raises(ConditioningError, match="once only"):
        list(stream)


def test_leaving_a_stream_early_stops_it_and_its_errors_reach_the_reader(assistant, video):
    stream = assistant.ask(video, QUESTION, stream=True, gaze=GAZE, max_new_tokens=200)
    for _ in stream:
        break
    assert not stream._thread.is_alive()
    assert not our_hooks(assistant.host)
    wrong = assistant.ask(
        video, QUESTION, stream=True, gaze=GAZE, generation={"no_such_argument": 1}
    )
    with pytest.raises(ValueError, match="no_such_argument"):
        list(wrong)


def test_a_chat_goes_on_with_all_that_was_said(assistant, video):
    chat = assistant.chat(video, gaze=GAZE, at=3.0)
    first = chat.say(QUESTION, max_new_tokens=3)
    second = chat.say("And before that?", max_new_tokens=3, compare=("none",))
    assert [turn.role for turn in chat.turns] == ["user", "assistant", "user", "assistant"]
    assert chat.turns[1].parts == (first.text,)
    assert second.report.steps == (2,)
    frames = read_frames(video, (0.0, 1.0, 2.0, 3.0))
    conversation = [
        Message("user", (VideoClip(frames, (0.0, 3.0)), QUESTION)),
        Message("assistant", (first.text,)),
        Message("user", ("And before that?",)),
    ]
    inputs = understand(assistant.host).encode(assistant.processor, conversation).inputs
    _, clip = by_hand(assistant, video, "")
    with (
        torch.inference_mode(),
        assistant.modulation.attached(assistant.host) as attachment,
        attachment.condition([[clip]]),
    ):
        ids = assistant.host.generate(**inputs, max_new_tokens=3, do_sample=False)
    new = ids[0, inputs["input_ids"].shape[1] :]
    assert (
        second.text == assistant.processor.tokenizer.decode(new, skip_special_tokens=True).strip()
    )


def test_questions_from_several_threads_are_answered_one_after_the_other(assistant, video):
    answers = {}

    def work(number):
        answers[number] = assistant.ask(video, QUESTION, options=OPTIONS, gaze=GAZE, at=3.0)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 4
    for answer in answers.values():
        assert answer.probabilities == answers[0].probabilities


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({}, RecipeError, "reads the signal 'gaze': pass gaze="),
        ({"hand": GAZE, "gaze": GAZE}, RecipeError, "does not read the signal 'hand'"),
        ({"gaze": "nowhere.csv"}, MissingFileError, "signal file nowhere.csv does not exist"),
        ({"gaze": [(0.1, 0.2)]}, SignalError, "gaze: list is no signal"),
        ({"gaze": GAZE, "options": ("plate",)}, DataError, "2 or more different"),
        ({"gaze": GAZE, "options": ("A. plate", "B. plate")}, DataError, "2 or more different"),
        ({"gaze": GAZE, "options": ("A.", "B. plate")}, DataError, "2 or more .* non-empty"),
        ({"gaze": GAZE, "options": ("B. plate", "A. cup")}, DataError, "must run from A in order"),
        ({"gaze": GAZE, "options": ("plate", "zebra")}, DataError, "'zebra' is not one known"),
        ({"gaze": GAZE, "compare": ("bare",)}, RecipeError, "'bare' is no condition"),
        ({"gaze": GAZE, "compare": "none"}, RecipeError, "compare="),
        ({"gaze": GAZE, "at": 1.0, "window": (0.0, 1.0)}, VideoError, "not both"),
        ({"gaze": GAZE, "stream": True, "options": OPTIONS}, RecipeError, "leave out `stream`"),
    ],
)
def test_wrong_questions_are_refused(assistant, video, changes, error, text):
    with pytest.raises(error, match=text):
        assistant.ask(video, QUESTION, **changes)
    assert not our_hooks(assistant.host)


def test_wrong_media_are_refused(assistant, tmp_path):
    with pytest.raises(MissingFileError, match=r"nowhere\.mp4"):
        assistant.ask(tmp_path / "nowhere.mp4", QUESTION, gaze=GAZE)
    with pytest.raises(VideoError, match=r"modulate\.Frames\(images, times\)"):
        assistant.ask(np.zeros((4, 8, 8, 3), np.uint8), QUESTION, gaze=GAZE)
    with pytest.raises(VideoError, match="2 frames have 1 times"):
        assistant.ask(Frames(np.zeros((2, 8, 8, 3), np.uint8), (0.0,)), QUESTION, gaze=GAZE)
    with pytest.raises(VideoError, match="int is nothing to look at"):
        assistant.ask(7, QUESTION, gaze=GAZE)


def test_a_modulation_that_does_not_say_how_it_is_used_is_refused(assistant):
    config = assistant.modulation.config
    for field, text in (
        ("usage", "does not say how it is used"),
        ("backbone", "names no backbone"),
    ):
        silent = Modulation(config.model_copy(update={field: None}))
        with pytest.raises(RecipeError, match=text):
            Assistant(assistant.host, assistant.processor, silent)
    Assistant(
        assistant.host,
        assistant.processor,
        Modulation(config.model_copy(update={"usage": None, "backbone": None})),
        backbone=assistant.backbone,
        usage=assistant.usage,
    )


def test_the_family_of_the_small_recipe_is_the_one_under_test(assistant):
    assert isinstance(understand(assistant.host), Qwen25VL)
