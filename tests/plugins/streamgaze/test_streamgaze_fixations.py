"""Fixation files from gaze files: in the preparation of the data set, and by the command."""

import json

import numpy as np
import pytest

from modulate import cli
from modulate.config.sections import Sampling
from modulate.data.sampled_steps import SampledSteps
from modulate.errors import DataError, MissingFileError
from modulate_gaze.scanpath import Scanpath
from modulate_streamgaze.data_check import check_tree
from tests.plugins.streamgaze.streamgaze_tree import (
    EGOEXO,
    EGTEA,
    HEADER,
    HOLO,
    VIDEOS,
    write_video,
)

EGTEA_HEAD = "## [BeGaze]\nTime\tType\tTrial\tX\tY\tFrame\tEvent\n"


def begaze(x=640, y=480, frames=range(24, 97)):
    return EGTEA_HEAD + "".join(f"{k}\tSMP\t1\t{x}\t{y}\t{k}\tFixation\n" for k in frames)


@pytest.fixture
def gaze(tree):
    """Write gaze of all eight videos, each with one fixation of 3 s, and no fixation files."""
    for path in (tree / "fixations").rglob("*.csv"):
        path.unlink()
    for name in ("egtea/deep", "egoexo", "holo"):
        (tree / "gaze" / name).mkdir(parents=True)
    for stem in EGTEA:
        (tree / f"gaze/egtea/deep/{stem}.txt").write_text(begaze())
    for stem in EGOEXO:
        np.save(
            tree / f"gaze/egoexo/{stem}.npy",
            np.array([[0, 0, 0]] * 30 + [[0.25, 0.75, 1]] * 91 + [[0.9, 0.1, 1]] * 9),
        )
    for stem in HOLO:
        rows = "".join(
            f"{k},{k / 24.46},{160 if k > 5 else 600},{12 if k > 5 else 2},True,True\n"
            for k in range(80)
        )
        (tree / f"gaze/holo/{stem}_gaze_2d.csv").write_text(
            "frame_idx,timestamp_sec,u,v,valid,in_frame\n" + rows
        )
    return {
        "folders": {"egtea": "gaze/egtea", "egoexolearn": "gaze/egoexo", "holoassist": "gaze/holo"}
    }


@pytest.fixture
def run(capsys):
    def run(*args):
        with pytest.raises(SystemExit) as ended:
            cli.main(["data", "fixations", *map(str, args)])
        out, err = capsys.readouterr()
        return ended.value.code or 0, " ".join(out.split()), " ".join(err.split())

    return run


def scanpath(tree, stem):
    return Scanpath.read(tree / f"fixations/{stem}_fixation_filtered.csv").fixations


def test_preparing_makes_what_is_missing_in_the_first_folder(tree, reader, gaze):
    existing = tree / f"fixations/others/{EGTEA[1]}_fixation_filtered.csv"
    existing.write_text(HEADER)
    data = reader(gaze=gaze)
    data.prepare()
    assert {s.groups["video"] for s in data.samples("all")} == set(VIDEOS)
    assert (
        existing.read_text() == HEADER
        and not (tree / f"fixations/{EGTEA[1]}_fixation_filtered.csv").exists()
    )
    assert np.allclose(scanpath(tree, EGTEA[0]), [[0.5, 0.5, 2.5, 3.0]])
    assert np.allclose(scanpath(tree, EGOEXO[0]), [[0.25, 0.75, 2.5, 3.0]])
    assert np.allclose(scanpath(tree, HOLO[0]), [[0.25, 0.75, 42.5 / 24.46, 73 / 24.46]], atol=1e-5)
    assert json.loads((tree / "fixations/extraction.json").read_text()) == {
        "radius": None,
        "min_seconds": 2.5,
        "gap": 0.01,
        "untracked": "keep",
    }
    reader().prepare()  # and from then on they are files like any other


def test_videos_left_out_on_purpose_get_no_fixations(tree, reader, gaze):
    (tree / "split.json").write_text(json.dumps({"train": VIDEOS[1:], "unused": VIDEOS[:1]}))
    reader(gaze=gaze, split="split.json").prepare()
    assert (
        len(list((tree / "fixations").glob("*.csv"))) == 7
        and not (tree / f"fixations/{VIDEOS[0]}_fixation_filtered.csv").exists()
    )


def test_the_radius_of_96_pixels_goes_by_each_videos_width(tree, reader, gaze):
    write_video(tree / f"videos/original_video/{EGOEXO[1]}.mp4", width=1280)
    for stem in EGOEXO:
        np.save(
            tree / f"gaze/egoexo/{stem}.npy", np.array([[0.5, 0.5, 1]] * 10 + [[0.6, 0.5, 1]] * 80)
        )
    reader(gaze=gaze).prepare()
    lasted = [scanpath(tree, stem)[:, 3].tolist() for stem in EGOEXO]
    assert lasted == [
        [pytest.approx(89 / 30, abs=1e-5)],
        [pytest.approx(79 / 30, abs=1e-5)],
    ]  # 64 pixels of 640, 128 of 1280


def test_a_second_preparation_makes_nothing_and_other_settings_are_refused(tree, reader, gaze):
    reader(gaze=gaze).prepare()
    path = tree / f"fixations/{EGTEA[0]}_fixation_filtered.csv"
    path.write_text(HEADER)
    reader(gaze=gaze | {"extraction": {"untracked": "drop"}}).prepare()  # nothing is missing
    assert path.read_text() == HEADER
    path.unlink()
    with pytest.raises(
        DataError,
        match=(
            r"holds fixations made with other settings \(extraction\.json: .*'keep'.*asked for:"
            r" .*'drop'"
        ),
    ):
        reader(gaze=gaze | {"extraction": {"untracked": "drop"}}).prepare()


def test_how_fixations_are_made_is_part_of_the_fingerprint(reader, gaze):
    made = reader(gaze=gaze)
    made.prepare()
    prints = {
        reader().fingerprint(),
        made.fingerprint(),
        reader(gaze=gaze | {"extraction": {"untracked": "drop"}}).fingerprint(),
    }
    assert len(prints) == 3


def test_gaze_files_that_cannot_be_read_or_are_not_there_are_errors(tree, reader, gaze):
    (tree / f"gaze/egtea/deep/{EGTEA[2]}.txt").write_text(EGTEA_HEAD + "1 2 3\n")
    with pytest.raises(
        DataError,
        match=(
            rf"1 of 8 fixation files could not be made\. First, {EGTEA[2]}: .*{EGTEA[2]}\.txt, line"
            r" 3: 3 fields"
        ),
    ):
        reader(gaze=gaze).prepare()
    (tree / f"gaze/egtea/deep/{EGTEA[2]}.txt").unlink()
    with pytest.raises(
        MissingFileError, match=rf"1 of 8 fixation files are missing in .*: {EGTEA[2]}\."
    ):
        reader(gaze=gaze).prepare()
    with pytest.raises(
        MissingFileError, match=r"Folder .*nowhere of the gaze files of ego4d does not exist"
    ):
        reader(gaze={"folders": {"ego4d": "nowhere"}}).prepare()
    (tree / f"gaze/egtea/{EGTEA[0]}.txt").write_text(begaze())
    with pytest.raises(DataError, match=f"Two gaze files for '{EGTEA[0]}'"):
        reader(gaze=gaze).prepare()


def test_the_command_makes_files_and_counts_what_it_saw(tree, gaze, run, tmp_path):
    out = tmp_path / "made"
    code, text, _ = run("egoexolearn", tree / "gaze/egoexo", out, "--width", 480)
    assert code == 0 and f"Wrote 2 files with 2 fixations to {out}; 0 were there before." in text
    assert "Of 260 frames 60 have no gaze and 0 have it outside the frame." in text
    assert np.allclose(
        Scanpath.read(out / f"{EGOEXO[1]}_fixation_filtered.csv").fixations,
        [[0.25, 0.75, 2.5, 3.0]],
    )
    code, text, _ = run("egoexolearn", tree / "gaze/egoexo", out, "--width", 480)
    assert code == 0 and "Wrote 0 files with 0 fixations" in text and "2 were there before" in text


def test_the_command_reads_frame_sizes_from_videos_and_makes_theirs_only(tree, gaze, run, tmp_path):
    (tree / "videos/original_video/held").mkdir()
    (tree / f"videos/original_video/{HOLO[0]}.mp4").rename(
        tree / f"videos/original_video/held/{HOLO[0]}.mp4"
    )
    code, text, _ = run(
        "holoassist",
        tree / "gaze/holo",
        tmp_path / "made",
        "--videos",
        tree / "videos/original_video/held",
    )
    assert code == 0 and "Wrote 1 files with 1 fixations" in text
    code, text, _ = run(
        "holoassist",
        tree / "gaze/holo",
        tmp_path / "made",
        "--videos",
        tree / "videos/original_video",
    )
    assert code == 1 and "6 of 8 videos have no gaze file: 0049ed5a" in text


def test_the_command_tells_of_fixations_at_the_corner_and_can_drop_them(tree, gaze, run, tmp_path):
    (tree / f"gaze/egtea/deep/{EGTEA[0]}.txt").write_text(
        begaze(frames=[*range(24), *range(100, 200)])
    )
    code, text, _ = run("egtea", tree / "gaze/egtea", tmp_path / "kept")
    note = (
        "Note: 1 fixations lie at (0, 0): frames without gaze, which the benchmark keeps."
        " --untracked drop leaves them out."
    )
    assert code == 0 and note in text
    code, text, _ = run("egtea", tree / "gaze/egtea", tmp_path / "dropped", "--untracked", "drop")
    assert code == 0 and "(0, 0)" not in text and "Wrote 4 files with 4 fixations" in text
    code, text, _ = run(
        "egtea", tree / "gaze/egtea", tmp_path / "short", "--min-seconds", 1, "--radius", 0.5
    )
    assert "Wrote 4 files with 5 fixations" in text


def wandering(tree):
    """Write a HoloAssist recording: 3 s inside the 640 × 16 frame, 3 s leaving it to the right."""
    rows = "".join(
        f"{k},{k / 24.46},{160 if k < 75 else 700 + 60 * (k - 75)},12,True,True\n"
        for k in range(150)
    )
    (tree / f"gaze/holo/{HOLO[0]}_gaze_2d.csv").write_text(
        "frame_idx,timestamp_sec,u,v,valid,in_frame\n" + rows
    )


def test_the_command_counts_the_fixations_that_clamping_makes(tree, gaze, run, tmp_path):
    code, text, _ = run(
        "holoassist", tree / "gaze/holo", tmp_path / "plain", "--width", 640, "--height", 16
    )
    assert (
        code == 0
        and "moved to its edge" not in text
        and not (tmp_path / "plain/clamped.json").exists()
    )
    wandering(tree)
    code, text, _ = run(
        "holoassist", tree / "gaze/holo", tmp_path / "made", "--width", 640, "--height", 16
    )
    assert code == 0 and "75 have it outside the frame." in text
    note = (
        "Note: gaze outside the frame was moved to its edge, which changes which fixations there"
        " are: 1 of the 3 exist only because of that, 0 would exist only without it (1 of 2"
        " videos)."
    )
    assert f"{note} The benchmark leaves HoloAssist's where it is." in text
    assert json.loads((tmp_path / "made/clamped.json").read_text()) == {HOLO[0]: [1, 0]}
    code, text, _ = run(
        "holoassist", tree / "gaze/holo", tmp_path / "made", "--width", 640, "--height", 16
    )
    assert "Wrote 0 files" in text and json.loads((tmp_path / "made/clamped.json").read_text()) == {
        HOLO[0]: [1, 0]
    }  # what was made before is not forgotten


def test_the_check_of_the_data_counts_them_too(tree, reader, gaze):
    wandering(tree)
    data = reader(gaze=gaze)
    data.prepare()
    message = (
        "moved to its edge when fixations were made: 1 of 9 fixations exist only because of that, 0"
        " would exist only without it (1 of 8 videos)"
    )
    found = lambda: check_tree(reader(), SampledSteps(Sampling()))[0].findings
    assert [level for level, text in found() if message in text] == ["info"]
    (tree / "fixations/clamped.json").write_text('{"a": [1]}')
    assert any(
        level == "warning" and "must map videos to two counts" in text for level, text in found()
    )
    (tree / "fixations/clamped.json").unlink()
    assert not any("its edge" in text for _, text in found())


def test_the_preset_of_gazeqwen_keeps_fixations_of_two_seconds(tree, gaze, run, tmp_path):
    (tree / f"gaze/egtea/deep/{EGTEA[0]}.txt").write_text(
        begaze(frames=range(24, 24 + 55))
    )  # 2.25 s, but for the frames before
    for preset, n in (("streamgaze", 3), ("gazeqwen", 4)):
        code, text, _ = run("egtea", tree / "gaze/egtea", tmp_path / preset, "--preset", preset)
        assert code == 0 and f"Wrote 4 files with {n} fixations" in text
    assert json.loads((tmp_path / "gazeqwen/extraction.json").read_text())["min_seconds"] == 2.0


def test_the_command_names_every_file_that_fails(tree, gaze, run, tmp_path):
    (tree / f"gaze/egtea/deep/{EGTEA[2]}.txt").write_text(EGTEA_HEAD + "1 2 3\n")
    code, text, err = run("egtea", tree / "gaze/egtea", tmp_path / "made")
    assert (
        code == 1
        and "Wrote 3 files" in text
        and f"Failed: {EGTEA[2]}: " in err
        and "line 3: 3 fields" in err
    )
    code, _, err = run("holoassist", tree / "gaze/holo", tmp_path / "holo")
    assert code == 1 and "its size must be known" in err


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["eegtea", ".", "out"], "Unknown source of gaze 'eegtea'. Did you mean 'egtea'"),
        (["egtea", "nowhere", "out"], "Folder nowhere of the gaze files of egtea does not exist"),
        (
            ["egtea", ".", "out", "--preset", "mine"],
            "Unknown preset 'mine'. Known: gazeqwen, streamgaze.",
        ),
        (
            ["egtea", ".", "out", "--untracked", "hide"],
            "--untracked: Input should be 'keep' or 'drop', got 'hide'",
        ),
        (
            ["egtea", ".", "out", "--min-seconds", "0"],
            "--min-seconds: Input should be greater than 0",
        ),
        (["egtea", ".", "out"], "holds no gaze file of egtea"),
    ],
)
def test_wrong_arguments_are_told(run, tmp_path, monkeypatch, args, text):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(*args)
    assert code == 1 and text in err
