"""`modulate ask`."""

import json

import pytest


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
            "--cache",
            folder / "cache",
            *more,
        )

    return ask


def test_ask_shows_answers_with_and_without_the_signal(ask):
    code, out, _ = ask()
    assert code == 0 and "a red cup" in out and "The signal reached" in out and "‖Δh‖/‖h‖" in out
    answers = json.loads(ask("--json")[1])
    assert [a["condition"] for a in answers] == ["signal", "none", "host"]
    assert all(sum(a["probabilities"]) == pytest.approx(1) for a in answers)
    assert answers[0]["tokens"] > 0
    assert answers[0]["ratio"]
    assert answers[1]["tokens"] == 0
    assert not answers[1]["ratio"]


def test_ask_takes_a_modulation_with_a_recipe(ask, work):
    run = work[0] / "runs" / "small"
    by_run = ask("--json")[1]
    assert (
        ask("--json", source=("--modulation", run / "modulation", "--recipe", run / "recipe.yaml"))[
            1
        ]
        == by_run
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(at="600"), "The question at 600 s lies outside"),
        (dict(at="-1"), "The question at -1 s lies outside"),
        (
            dict(options=("a red cup",)),
            "A question needs 2 to 8 different, non-empty options; got ['a red cup'].",
        ),
        (dict(options=("x", "x")), "different, non-empty options; got ['x', 'x']."),
        (dict(signal="gaze"), "Signal 'gaze' is not of the form kind=file"),
        (dict(signal="gaze=none.csv"), "The signal file none.csv does not exist."),
        (dict(signal=f"gase={__file__}"), "does not read the signal 'gase'. Did you mean 'gaze'?"),
        (dict(signal=f"gaze={__file__}"), "the header"),
        (
            dict(source=()),
            "No model is named. Give either --run RUN, or --modulation DIR together with"
            " --recipe RECIPE.",
        ),
    ],
)
def test_ask_refuses_invalid_questions(change, message, ask):
    code, _, err = ask(**change)
    assert code == 1 and message in err and "Traceback" not in err
