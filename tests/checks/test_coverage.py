"""Samples whose signal is never active, and signals outside of their video."""

import shutil

from tests.checks.conftest import samples_of, texts
from tests.video_files import write_video


def test_signals_that_are_never_active_are_counted(checked, world, tmp_path):
    root = copied(world, tmp_path)
    for path in (root / "fixations").glob("*.csv"):
        header = path.read_text().partition("\n")[0]
        path.write_text(header + "\n")
    report = checked(root=root)
    assert report.coverage["train"] == 0.0
    assert "In 100.0 % of the train samples the signal is active at no sampled step." in texts(
        report, "error"
    )


def test_a_question_after_the_end_of_its_video_is_an_error(checked, world, tmp_path):
    root = copied(world, tmp_path)
    videos = sorted((root / "videos").rglob("*.mp4"))
    shorten(videos[0])
    report = checked(root=root)
    assert f"lies after the end of {videos[0]}, which ends at" in texts(report, "error")


def copied(world, tmp_path):
    return shutil.copytree(world, tmp_path / "copy")


def shorten(path):
    """Replace a video with one of two seconds."""
    write_video(path, seconds=2.0, rate=5, size=(64, 64))


def test_signals_on_another_clock_are_counted_by_sample(checked, world, tmp_path):
    root = copied(world, tmp_path)
    moved = sorted((root / "fixations").glob("*.csv"))[0]
    header, *rows = moved.read_text().splitlines()
    columns = header.split(",")
    late = [
        ",".join(
            str(float(v) + 1e6) if name.startswith(("start_time", "end_time")) else v
            for name, v in zip(columns, row.split(","))
        )
        for row in rows
    ]
    moved.write_text("\n".join([header, *late]) + "\n")
    report = checked(root=root)
    samples = samples_of(root)
    n = sum(s.clip.signals["gaze"] == moved for s in samples)
    assert 0 < n < len(samples)
    assert f"In {n} of {len(samples)} samples the whole signal lies outside the video" in texts(
        report, "warning"
    )
