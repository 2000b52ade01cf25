"""`modulate train`."""

import re
import subprocess
import sys

from tests.paths import SMALL


def test_train_prints_a_table_and_then_the_run(work):
    folder, result, cached = work
    assert result.exit_code == 0, result.output
    for text in (
        "present_object_identification_easy",
        "shuffled",
        "mean over tasks",
        "95 % interval",
        "signal - blank",
        "McNemar p",
        "The signal reached",
    ):
        assert text in result.stdout
    assert result.stdout.splitlines()[-1] == f"Run: {folder / 'runs' / 'small'}"
    assert "stage modulator" in result.stderr and "signal in" in result.stderr
    assert re.search(
        rf"^features \(cache {folder / 'cache'}\): {cached} times computed, [1-9][0-9]* times"
        r" found$",
        result.stderr,
        re.M,
    )


FEW = [
    "lora=null",
    "training.stages.1.train=[modulator]",
    "data.params.max_per_split=4",
    "evaluation.conditions=[blank]",
]


def test_train_summarizes_every_cache_and_says_which_limit_was_too_small(work, modulate, tmp_path):
    folder, _, _ = work
    bounds = [
        "features.disk_gib=0.00002",
        "features.vision_tower_cache_gib=1",
        "features.hidden_state_cache_gib=1",
        "features.frames_gib=1",
        "training.batch_by=clip",
        "training.batch_size=4",
    ]
    code, _, err = modulate(
        "train",
        SMALL,
        f"data.params.root={folder}/world",
        "--runs",
        tmp_path / "runs",
        "--cache",
        tmp_path / "cache",
        *bounds,
        *FEW,
    )
    assert code == 0, err
    for line in (
        (
            rf"features \(cache {tmp_path}/cache\): \d+ times computed, \d+ times found;"
            r" features\.disk_gib keeps 0\.0 MiB, for which \d+ were dropped: raise it"
        ),
        (
            rf"decoded frames \(cache {tmp_path}/cache/frames\): [1-9]\d* times decoded, \d+ times"
            r" found"
        ),
        (
            rf"output of the vision tower \(cache {tmp_path}/cache/tower\): [1-9]\d* times"
            r" computed, \d+ times found"
        ),
        (
            r"hidden states below the first injected layer \(memory\): [1-9]\d* times computed,"
            r" [1-9]\d* times found"
        ),
    ):
        assert re.search(f"^{line}$", err, re.M), (line, err)


def test_a_folder_that_cannot_be_written_is_one_plain_warning(work, tmp_path):
    folder, _, _ = work
    (tmp_path / "file").touch()
    args = [
        "train",
        SMALL,
        f"data.params.root={folder}/world",
        "--runs",
        tmp_path / "runs",
        "--cache",
        tmp_path / "file",
        *FEW,
    ]
    done = subprocess.run(
        [sys.executable, "-m", "modulate", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = [line for line in done.stderr.splitlines() if "cannot be cached" in line]
    assert done.returncode == 0
    assert len(lines) == 1
    assert lines[0].startswith(f"warning: Features cannot be cached in {tmp_path}/file (")
    assert "UserWarning" not in done.stderr and "warnings.warn" not in done.stderr
