import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modulate.errors import DataError, MissingFileError
from modulate_streamgaze.questions import (
    parse_answer,
    parse_options,
    parse_time,
    read_questions,
    video_stem,
)

MCQ = "present_object_identification_easy"
PROACTIVE = "proactive_gaze_triggered_alert"


def question(**changes):
    return {
        "question": "What is it?",
        "time_stamp": "00:12",
        "answer": "B",
        "options": ["cup", "pan", "jar", "lid"],
    } | changes


def entry(*questions, **changes):
    return {
        "video_path": "videos/a.mp4",
        "response_time": "[00:00 - 00:12]",
        "questions": list(questions) or [question()],
    } | changes


def alert(*points, **changes):
    return {
        "question": "Tell me when I look at the cup.",
        "time_stamp": "00:02",
        "target_object": "cup",
        "test_info": list(points),
    } | changes


@pytest.fixture
def read(tmp_path):
    def read(data, task=MCQ):
        path = tmp_path / f"{task}.json"
        path.write_text(data if isinstance(data, str) else json.dumps(data))
        return read_questions(path)

    return read


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("00:12", 12),
        ("75:10", 4510),
        ("1:02:03", 3723),
        ("01:02.5", 62.5),
        (12, 12),
        (3.25, 3.25),
        ("7.5", 7.5),
        (" 00:01 ", 1),
        ("2\x1d", 2),
        (0, 0),
    ],
)
def test_times_are_read_in_all_their_forms(value, seconds):
    assert parse_time(value) == seconds


@pytest.mark.parametrize(
    "value",
    [
        "",
        "12:60",
        "1:60:00",
        "-1",
        -1,
        "00:-1",
        None,
        True,
        [],
        float("nan"),
        float("inf"),
        "1e400",
        "1_0",
        "a:b",
        "1:2:3:4",
        10**400,
    ],
)
def test_other_times_are_refused_with_the_value(value):
    with pytest.raises(DataError, match=r"not readable; allowed: MM:SS, HH:MM:SS"):
        parse_time(value)


@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59))
def test_clock_times_round_trip(hours, minutes, seconds):
    assert (
        parse_time(f"{hours:02}:{minutes:02}:{seconds:02}") == 3600 * hours + 60 * minutes + seconds
    )
    assert (
        parse_time(f"{60 * hours + minutes:02}:{seconds:02}")
        == 3600 * hours + 60 * minutes + seconds
    )


@given(st.text("0123456789:.-+e_ x", max_size=12) | st.floats() | st.integers() | st.none())
def test_any_input_is_a_time_or_a_data_error(value):
    with contextlib.suppress(DataError):
        assert parse_time(value) >= 0


def test_multiple_choice_entries_become_items(read):
    (item,) = read([entry(question(task_type="OI", note="n"), viewer=7, source="EGTEA")])
    assert (item.id, item.task, item.video, item.stem) == (f"{MCQ}/a/0/0", MCQ, "a.mp4", "a")
    assert (item.question, item.options, item.answer, item.time, item.clip) == (
        "What is it?",
        ("cup", "pan", "jar", "lid"),
        1,
        12.0,
        None,
    )
    assert item.groups == {"video": "a", "viewer": "7"}
    assert item.extra["entry"] == {
        "video_path": "videos/a.mp4",
        "response_time": "[00:00 - 00:12]",
        "viewer": 7,
        "source": "EGTEA",
    }
    assert item.extra["question"] == {"time_stamp": "00:12", "task_type": "OI", "note": "n"}


def test_the_other_key_for_videos_and_an_absent_task_type(read):
    (item,) = read(
        [{"video": "b.mp4", "participant": "P3", "questions": [question(time_stamp=7.5)]}]
    )
    assert (item.video, item.time, item.extra["question"]["task_type"]) == ("b.mp4", 7.5, MCQ)
    assert item.groups == {"video": "b", "participant": "P3"}


def test_proactive_questions_become_one_item_per_test_point(read):
    points = (
        {"realtime": "00:05", "type": 0},
        {
            "realtime": "01:00",
            "type": 1,
            "input_video_clip": [52, "01:00"],
            "salience_map_path": "s.png",
        },
    )
    no, yes = read([entry(alert(*points))], PROACTIVE)
    assert (
        no.question
        == "Tell me when I look at the cup. Based on the video so far, should the alert be"
        " triggered?"
    )
    assert (no.id, no.options, no.answer, no.time, no.clip) == (
        f"{PROACTIVE}/a/0/0/0",
        ("Yes", "No"),
        1,
        5.0,
        None,
    )
    assert (yes.id, yes.answer, yes.time, yes.clip) == (
        f"{PROACTIVE}/a/0/0/1",
        0,
        60.0,
        (52.0, 60.0),
    )
    assert yes.extra["test_point"]["salience_map_path"] == "s.png"
    assert yes.extra["question"] == {"time_stamp": "00:02", "target_object": "cup"}


def test_letters_on_options_are_taken_off_and_recorded(read):
    (item,) = read([entry(question(options=["A. cup", "B) pan", "(C) jar", "D: lid"]))])
    assert item.options == ("cup", "pan", "jar", "lid")
    assert item.extra["options_had_letters"] is True


def test_what_only_looks_like_a_letter_stays():
    assert parse_options(["A. Smith", "cup"]) == (("A. Smith", "cup"), False)
    assert parse_options([1, 2.5]) == (("1", "2.5"), False)


@given(st.lists(st.text("abc xyz", min_size=1).filter(str.strip), min_size=2, max_size=8))
def test_options_survive_having_letters(texts):
    texts = tuple(text.strip() for text in texts)
    assert parse_options(list(texts)) == (texts, False)
    lettered = [f"{letter}. {text}" for letter, text in zip("ABCDEFGH", texts, strict=False)]
    assert parse_options(lettered) == (texts, True)


@given(st.integers(2, 8), st.text("ABCHIabz. ", max_size=2))
def test_answers_are_an_option_or_an_error(n, text):
    if text.strip().upper() in tuple("ABCDEFGH"[:n]):
        assert 0 <= parse_answer(text, n) < n
    else:
        with pytest.raises(DataError, match="Options ≠ letters"):
            parse_answer(text, n)


HERE = rf"{MCQ}\.json, entry 0 \(a\.mp4\), question 0: "


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"answer": "E"},
            HERE + "Options ≠ letters: the answer is 'E', but there are 4 options, A to D",
        ),
        ({"answer": None}, HERE + "Options ≠ letters: the answer is None"),
        (
            {"answer": "C", "options": ["x", "y"]},
            HERE + "Options ≠ letters: the answer is 'C', but there are 2 options, A to B",
        ),
        ({"options": []}, HERE + r"Options must be a list of 2 to 8 texts; got \[\]"),
        ({"options": ["x"]}, HERE + "Options must be a list of 2 to 8"),
        ({"options": ["x", None]}, HERE + "Options must be texts"),
        ({"options": ["x", " "]}, HERE + "Option B is empty"),
        ({"options": ["A. x", "B. "]}, HERE + "Option B is empty"),
        (
            {"options": ["B. x", "A. y"]},
            HERE + "The options' letters must run from A in order; got 'BA'",
        ),
        ({"time_stamp": "00:77"}, HERE + "Time '00:77' is not readable"),
        ({"time_stamp": None}, HERE + "Time None is not readable"),
        ({"question": ""}, HERE + "'question' must be a text"),
    ],
)
def test_bad_questions_are_named(read, changes, text):
    with pytest.raises(DataError, match=f"^{text}"):
        read([entry(question(**changes))])


@pytest.mark.parametrize(
    ("point", "text"),
    [
        ({"realtime": "x", "type": 1}, "test point 0: Time 'x' is not readable"),
        (
            {"realtime": 3, "type": "yes"},
            "test point 0: A test point's type must be 1 .* got 'yes'",
        ),
        (
            {"realtime": 3, "type": 1, "input_video_clip": [5, 5]},
            r"must end after it starts; got \[5, 5\]",
        ),
        ({"realtime": 3, "type": 1, "input_video_clip": 5}, r"must be \[start, end\]; got 5"),
        (4, "A test point must be an object; got int '4'"),
    ],
)
def test_bad_test_points_are_named(read, point, text):
    with pytest.raises(
        DataError, match=rf"^{PROACTIVE}\.json, entry 0 \(a\.mp4\), question 0: .*{text}"
    ):
        read([entry(alert(point))], PROACTIVE)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("[{", r"present.*\.json is not valid JSON: .*line 1"),
        ({"a": 1}, "must hold a list of entries; got dict"),
        ([], "holds no question"),
        ([5], r"entry 0: An entry must be an object .* got int '5'"),
        ([entry(questions=[])], "entry 0: 'questions' must be a list that is not empty"),
        ([entry(questions=[5])], "entry 0: Question 0 must be an object"),
        ([entry(video_path=None)], "entry 0: An entry needs one video"),
        ([entry(video="other.mp4")], r"entry 0: An entry needs one video .*other\.mp4"),
    ],
)
def test_malformed_files_are_named(read, data, text):
    with pytest.raises(DataError, match=text):
        read(data)


def test_files_must_exist_and_be_a_task(tmp_path, read):
    with pytest.raises(MissingFileError, match=rf"{MCQ}\.json does not exist"):
        read_questions(tmp_path / f"{MCQ}.json")
    with pytest.raises(
        DataError,
        match=r"past_scene_recal\.json is no task of StreamGaze\. Did you mean 'past_scene_recall'",
    ):
        read([], "past_scene_recal")


def test_only_video_suffixes_are_dropped():
    assert [video_stem(name) for name in ("a.MP4", "P01.R02", "d/b.x.mkv")] == [
        "a",
        "P01.R02",
        "b.x",
    ]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"options": ["x"] * 9999}, "Options must be a list of 2 to 8"),
        ({"options": ["x" * 99_999, ""]}, "Option B is empty"),
        ({"answer": "x" * 99_999}, "Options ≠ letters"),
        ({"time_stamp": "9" * 99_999}, "Time '999.*… is not readable"),
        ({"time_stamp": 1e300}, "Time 1e\\+300 is not readable"),
        ({"time_stamp": "999999999:00:00"}, "is not readable"),
        ({"question": [0] * 99_999}, "'question' must be a text"),
    ],
)
def test_values_of_any_length_make_short_messages_and_times_are_those_of_videos(
    read, changes, text
):
    with pytest.raises(DataError, match=text) as caught:
        read([entry(question(**changes))])
    assert len(str(caught.value)) < 700
