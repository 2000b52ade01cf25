"""One question about one video: the clip, the options, the signals."""

from pathlib import Path

import pytest

from modulate.config.recipe import load_recipe
from modulate.errors import DataError, MissingFileError, RecipeError, VideoError
from modulate.inference.ask import parse_signals, sample_of
from tests.data.test_clip_reader import film

OPTIONS = ("a cup", "a knife")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Twelve seconds at 2 frames per second."""
    return film(tmp_path_factory.mktemp("ask") / "v.mp4", fps=2, count=24)


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("gazeqwen_tiny", ["sampling={fps: 2.0, max_frames: 8}"])


@pytest.fixture
def make_sample(video, recipe):
    def make(at=10.0, question="What is looked at?", options=OPTIONS, signals=None, **more):
        signals = {"gaze": Path("g.csv")} if signals is None else signals
        return sample_of(video, signals, at, question, options, recipe, **more)

    return make


def test_the_model_sees_what_the_frame_cap_covers_before_the_question(make_sample, video):
    sample = make_sample()
    assert sample.clip.window == (6.0, 10.0)
    assert sample.clip.file == video
    assert sample.question == "What is looked at?"
    assert sample.options == OPTIONS
    assert sample.clip.signals == {"gaze": Path("g.csv")}
    assert sample.id == "v.mp4@10s"
    assert make_sample(at=2.5).id == "v.mp4@2.5s"


@pytest.mark.parametrize(
    ("at", "seconds", "window"),
    [
        (10.0, 7.5, (2.5, 10.0)),
        (3.0, 5.0, (0.0, 3.0)),
        (0.0, None, (0.0, 0.0)),
        (12.5, 1.0, (11.5, 12.5)),
    ],
)
def test_another_length_may_be_seen_between_the_first_frame_and_the_end_of_the_last(
    make_sample, at, seconds, window
):
    assert make_sample(at=at, seconds=seconds).clip.window == window


@pytest.mark.parametrize("at", [-0.1, 12.6, float("nan")])
def test_a_time_outside_the_video_is_refused(make_sample, at):
    with pytest.raises(VideoError, match=r"lies outside .*v\.mp4, which lasts 12\.00 s"):
        make_sample(at=at)


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_the_clip_must_have_some_length(make_sample, seconds):
    with pytest.raises(VideoError, match=f"must have some length; got {seconds} seconds"):
        make_sample(seconds=seconds)


@pytest.mark.parametrize(
    "options", [("one",), ("one", "one"), ("one", " "), tuple("abcdefghi"), ()]
)
def test_options_must_be_two_to_eight_different_texts(make_sample, options):
    with pytest.raises(DataError, match="A question needs 2 to 8 different, non-empty options"):
        make_sample(options=options)
    assert make_sample(options=tuple("abcdefgh")).options == tuple("abcdefgh")


def test_a_question_needs_a_text_and_the_signals_of_the_recipe(make_sample):
    with pytest.raises(DataError, match="The question is empty"):
        make_sample(question=" ")
    with pytest.raises(RecipeError, match=r"does not read the signal 'hand'\. .*Known: gaze"):
        make_sample(signals={"gaze": Path("g"), "hand": Path("h")})
    with pytest.raises(RecipeError, match="reads the signal 'gaze'; give it as gaze=FILE"):
        make_sample(signals={})


def test_each_signal_is_given_once_by_kind(tmp_path):
    first = tmp_path / "a=b.csv"
    second = tmp_path / "h.csv"
    first.touch()
    second.touch()
    assert parse_signals([f"gaze={first}", f"hand={second}"]) == {"gaze": first, "hand": second}
    assert parse_signals([]) == {}
    for text in ("gaze", "gaze=", f"={first}"):
        with pytest.raises(RecipeError, match="is not of the form kind=file"):
            parse_signals([text])
    with pytest.raises(RecipeError, match="The signal 'gaze' is given twice"):
        parse_signals([f"gaze={first}", f"gaze={second}"])
    with pytest.raises(MissingFileError, match=r"The signal file .*none\.csv does not exist"):
        parse_signals([f"gaze={tmp_path}/none.csv"])
