"""`modulate ask`."""

import json

import pytest

from modulate.cli.commands.ask import parse_signals
from modulate.errors import RecipeError


@pytest.fixture
def ask(work, modulate):
    folder, _, _ = work
    video = sorted((folder / "world" / "videos").rglob("*.mp4"))[0]
    gaze = folder / "world" / "fixations" / f"{video.stem}_fixation_filtered.csv"

    def ask(
        *more,
        at="6",
        signal=f"gaze={gaze}",
        options=("a red cup", "a blue ball"),
        source=("--run", folder / "runs" / "small"),
    ):
        chosen = [part for option in options for part in ("--option", option)]
        return modulate(
            "ask",
            video,
            "--signal",
            signal,
            "--at",
            at,
            "--question",
            "What is it?",
            *chosen,
            *source,
            *more,
        )

    return ask


def test_ask_shows_answers_with_and_without_the_signal(ask):
    code, out, _ = ask()
    assert code == 0 and "a red cup" in out and "The signal reached" in out and "‖Δh‖/‖h‖" in out
    answers = json.loads(ask("--json")[1])
    assert [a["condition"] for a in answers] == ["signal", "none", "host"]
    assert all(sum(a["probabilities"].values()) == pytest.approx(1) for a in answers)
    assert all(list(a["probabilities"]) == ["a red cup", "a blue ball"] for a in answers)
    assert answers[0]["tokens"] > 0
    assert answers[0]["ratio"]
    assert answers[1]["tokens"] == 0
    assert not answers[1]["ratio"]


def test_ask_answers_in_words_without_options(ask):
    code, out, _ = ask("--max-new-tokens", "3", options=())
    assert code == 0 and "Condition" in out and "The signal reached" in out
    answers = json.loads(ask("--json", "--max-new-tokens", "3", options=())[1])
    assert [a["condition"] for a in answers] == ["signal", "none", "host"]
    assert all(a["probabilities"] is None and a["text"] for a in answers)


def test_ask_takes_a_saved_modulation_and_needs_no_recipe(ask, work):
    run = work[0] / "runs" / "small"
    by_run = ask("--json")[1]
    saved = ("--modulation", run / "modulation")
    assert ask("--json", source=saved)[1] == by_run
    assert ask("--json", source=(*saved, "--recipe", run / "recipe.yaml"))[1] == by_run


def test_ask_takes_letters_of_options_as_part_of_the_prompt(ask):
    plain = json.loads(ask("--json")[1])
    with_letters = json.loads(ask("--json", options=("A. a red cup", "B. a blue ball"))[1])
    assert list(with_letters[0]["probabilities"].values()) == list(
        plain[0]["probabilities"].values()
    )


def test_ask_shows_as_much_of_the_video_as_asked_for(ask):
    assert json.loads(ask("--json", "--seconds", "2")[1])[0]["steps"] < 4
    for more, message in (
        (("--seconds", "0"), "must have some length; got 0.0 seconds"),
        (("--seconds", "-1"), "must have some length; got -1.0 seconds"),
    ):
        code, _, err = ask(*more)
        assert code == 1 and message in err


@pytest.mark.parametrize("form", ["gaze", "gaze=", "=x.csv"])
def test_a_signal_is_given_as_kind_and_file(form, tmp_path):
    with pytest.raises(RecipeError, match="is not of the form kind=file"):
        parse_signals([form])
    first = tmp_path / "a=b.csv"
    first.touch()
    assert parse_signals([f"gaze={first}"]) == {"gaze": first}
    with pytest.raises(RecipeError, match="The signal 'gaze' is given twice"):
        parse_signals([f"gaze={first}", f"gaze={first}"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(at="600"), "The question at 600 s lies outside"),
        (dict(at="-1"), "The question at -1 s lies outside"),
        (
            dict(options=("a red cup",)),
            "A question needs 2 or more different, non-empty options; got ['a red cup'].",
        ),
        (dict(options=("x", "x")), "different, non-empty options; got ['x', 'x']."),
        (dict(signal="gaze"), "Signal 'gaze' is not of the form kind=file"),
        (dict(signal="gaze=none.csv"), "The signal file none.csv does not exist."),
        (dict(signal=f"gase={__file__}"), "does not read the signal 'gase'. Did you mean 'gaze'?"),
        (dict(signal=f"gaze={__file__}"), "the header"),
        (
            dict(source=()),
            "No model is named. Give either --run RUN, or --modulation DIR",
        ),
    ],
)
def test_ask_refuses_invalid_questions(change, message, ask):
    code, _, err = ask(**change)
    assert code == 1 and message in err and "Traceback" not in err
