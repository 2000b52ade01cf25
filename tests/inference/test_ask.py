"""A question of one's own: what can be asked of which video, with which signals."""

from pathlib import Path

import pytest

from modulate.config.recipe import load_recipe
from modulate.errors import DataError, MissingFileError, RecipeError, VideoError
from modulate.inference.ask import parse_signals, sample_of
from tests.data.test_clip_reader import film

OPTIONS = ("a cup", "a knife")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Twelve seconds, two frames in each."""
    return film(tmp_path_factory.mktemp("ask") / "v.mp4", fps=2, count=24)


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("gazeqwen_tiny", ["sampling={fps: 2.0, max_frames: 8}"])


@pytest.fixture
def asked(video, recipe):
    def of(at=10.0, question="What is looked at?", options=OPTIONS, signals=None, **more):
        return sample_of(
            video,
            {"gaze": Path("g.csv")} if signals is None else signals,
            at,
            question,
            options,
            recipe,
            **more,
        )

    return of


def test_the_model_sees_what_the_frame_cap_covers_before_the_question(asked, video):
    sample = asked()
    assert (sample.window, sample.video, sample.question, sample.options, sample.answer) == (
        (6.0, 10.0),
        video,
        "What is looked at?",
        OPTIONS,
        0,
    )
    assert (
        sample.signals == {"gaze": Path("g.csv")}
        and sample.id == "v.mp4@10s"
        and asked(at=2.5).id == "v.mp4@2.5s"
    )


@pytest.mark.parametrize(
    ("at", "seconds", "window"),
    [
        (10.0, 7.5, (2.5, 10.0)),
        (3.0, 5.0, (0.0, 3.0)),
        (0.0, None, (0.0, 0.0)),
        (12.5, 1.0, (11.5, 12.5)),
    ],
)
def test_more_or_less_may_be_seen_from_the_first_frame_to_when_the_last_is_gone(
    asked, at, seconds, window
):
    assert asked(at=at, seconds=seconds).window == window


@pytest.mark.parametrize("at", [-0.1, 12.6, float("nan")])
def test_a_time_outside_the_video_is_refused(asked, at):
    with pytest.raises(VideoError, match=r"lies outside .*v\.mp4, which lasts 12\.00 s"):
        asked(at=at)


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_some_of_the_video_must_be_seen(asked, seconds):
    with pytest.raises(VideoError, match=f"must see some of the video; got {seconds} seconds"):
        asked(seconds=seconds)


@pytest.mark.parametrize(
    "options", [("one",), ("one", "one"), ("one", " "), tuple("abcdefghi"), ()]
)
def test_options_must_be_two_to_eight_different_texts(asked, options):
    with pytest.raises(DataError, match="A question needs 2 to 8 different, non-empty options"):
        asked(options=options)
    assert asked(options=tuple("abcdefgh")).options == tuple("abcdefgh")


def test_a_question_needs_words_and_the_recipe_s_own_signals(asked):
    with pytest.raises(DataError, match="The question is empty"):
        asked(question=" ")
    with pytest.raises(RecipeError, match=r"does not read the signal 'hand'\. .*Known: gaze"):
        asked(signals={"gaze": Path("g"), "hand": Path("h")})
    with pytest.raises(RecipeError, match="reads the signal 'gaze'; give it as gaze=FILE"):
        asked(signals={})


def test_signals_are_named_by_kind_once_each(tmp_path):
    first = tmp_path / "a=b.csv"
    second = tmp_path / "h.csv"
    first.touch()
    second.touch()
    assert (
        parse_signals([f"gaze={first}", f"hand={second}"]) == {"gaze": first, "hand": second}
        and parse_signals([]) == {}
    )
    for text in ("gaze", "gaze=", f"={first}"):
        with pytest.raises(RecipeError, match="is not of the form kind=file"):
            parse_signals([text])
    with pytest.raises(RecipeError, match="The signal 'gaze' is given twice"):
        parse_signals([f"gaze={first}", f"gaze={second}"])
    with pytest.raises(MissingFileError, match=r"The signal file .*none\.csv does not exist"):
        parse_signals([f"gaze={tmp_path}/none.csv"])
