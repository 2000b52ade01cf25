"""Damaged inputs for every parser of foreign files: a typed error or a right result.

The short form of tests/durability/fuzz.py.
"""

import base64
import json
import resource
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modulate.errors import DataError, SignalError
from modulate_hand.path import GAP, HandPath
from modulate_streamgaze.questions import LETTERS, parse_questions
from modulate_streamgaze.splits import parse_split
from tests.durability import fuzz, fuzz_records, fuzz_stats, parsers
from tests.durability import mutations as mutate
from tests.durability.fuzz_coverage import measure_coverage
from tests.paths import ROOT

PARSERS = parsers.parsers()


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.filterwarnings("ignore")  # libraries may warn of what is damaged
def test_damaged_inputs_are_refused_with_a_typed_error_or_read_rightly(name):
    inputs = max(20, int(400 * PARSERS[name].share))
    result = fuzz.by_mutation(name, inputs, 60.0, seed=2026)
    assert [(f["kind"], f["text"], base64.b64decode(f["input"])) for f in result["findings"]] == []
    assert (
        result["inputs"] == inputs
        and result["accepted"] + sum(result["refused"].values()) == inputs
        and result["refused"]
    )


# --- what is generated right is read right

positions = st.tuples(st.floats(-0.5, 1.5), st.floats(-0.5, 1.5))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(0, 10_000), positions), unique_by=lambda sample: sample[0], max_size=8
    ),
    st.permutations(["time_seconds", "x", "y", "note"]),
)
def test_hand_positions_that_are_written_are_read(samples, columns):
    samples = sorted(samples)
    rows = [{"time_seconds": k / 64, "x": x, "y": y, "note": "a"} for k, (x, y) in samples]
    text = "\n".join(
        [",".join(columns), *(",".join(str(row[column]) for column in columns) for row in rows)]
    )
    path = HandPath.parse(text.encode(), "h.csv")
    assert path.fixations[:, :2].tolist() == [list(xy) for _, xy in samples]
    assert path.starts.tolist() == pytest.approx([row["time_seconds"] for row in rows], abs=1e-9)
    lasts = [min((b - a) / 64, GAP) for (a, _), (b, _) in zip(samples, samples[1:], strict=False)]
    assert path.fixations[:-1, 3].tolist() == pytest.approx(lasts, abs=1e-9)


texts = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12).filter(
    str.strip
)
questions = st.builds(
    lambda text, options, answer, time, extra: (
        {
            "question": text,
            "options": options,
            "answer": LETTERS[answer % len(options)],
            "time_stamp": time,
        }
        | extra
    ),
    texts,
    st.lists(texts.map(lambda t: "it is " + t), min_size=2, max_size=8),
    st.integers(0, 7),
    st.integers(0, 86_400) | st.floats(0, 9e6),
    st.dictionaries(st.sampled_from(["task_type", "note"]), texts, max_size=2),
)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a.mp4", "v/b.mkv", "P01.R02"]),
            st.lists(questions, min_size=1, max_size=3),
        ),
        min_size=1,
        max_size=3,
    ),
    st.booleans(),
)
def test_questions_that_are_written_are_read(entries, ascii_only):
    data = json.dumps(
        [{"video_path": video, "questions": asked} for video, asked in entries],
        ensure_ascii=ascii_only,
    ).encode()
    items = parse_questions(data, parsers.MCQ)
    flat = [(video, q) for video, asked in entries for q in asked]
    assert [item.video for item in items] == [video.rpartition("/")[2] for video, _ in flat]
    assert [(i.question, i.options, LETTERS[i.answer]) for i in items] == [
        (q["question"].strip(), tuple(o.strip() for o in q["options"]), q["answer"])
        for _, q in flat
    ]
    assert [i.time for i in items] == [float(q["time_stamp"]) for _, q in flat]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.sampled_from(["train", "val", "test", "unused"]),
        min_size=len(parsers.NAMES),
        max_size=len(parsers.NAMES),
    ),
    st.randoms(),
)
def test_a_split_that_is_written_is_read_and_one_that_loses_or_repeats_a_video_is_not(splits, rng):
    names = parsers.NAMES
    expected = {}
    lists = {key: [] for key in ("train", "val", "test", "unused")}
    for name, split in zip(names, splits, strict=True):
        stem = name.removesuffix(".mp4")
        lists[split].append(rng.choice((name, stem, f"videos/{name}")))
        expected[stem] = split
    read = lambda: parse_split(json.dumps(lists).encode(), Path("split.json"), names)
    assert read() == expected
    victim = lists[splits[0]].pop(0)
    with pytest.raises(DataError, match="leaves out 1 of 6 videos"):
        read()
    lists[splits[0]].append(victim)
    lists[rng.choice(list(lists))].append(victim)
    with pytest.raises(DataError, match="is listed twice"):
        read()


# --- the fuzzer can fail


def planted(parse, check=lambda result, data: None):
    return parsers.Parser("planted", "a planted defect", lambda: [b"1,2"], parse, check, ())


def below_peak():
    """Return the bytes that this process may allocate before its peak memory rises.

    Earlier tests of the same process may have raised the peak.
    """
    now = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return max(0, int(fuzz_stats.peak_memory() * 2**20) - now)


def test_a_planted_defect_of_every_kind_is_found(monkeypatch):
    monkeypatch.setattr(fuzz_stats, "SLOW", 0.02)
    monkeypatch.setattr(fuzz_stats, "HANG", 0.2)
    monkeypatch.setattr(fuzz_stats, "MEMORY", 100)
    fuzz_stats.install_timeout()

    def parse(data):
        if data == b"raises":
            return [][1]
        if data == b"says much":
            raise SignalError("x" * 5000)
        if data == b"hangs":
            while True:
                pass
        if data == b"is slow":
            start = time.process_time()
            while time.process_time() - start < 0.05:
                pass
        if data == b"takes memory":
            return len(bytearray(below_peak() + (300 << 20)))
        if data == b"is refused":
            raise SignalError("no")
        return data

    def check(result, data):
        assert data != b"is wrong", "a wrong result"

    stats = fuzz_stats.FuzzStats(planted(parse, check))
    for data in (
        b"right",
        b"is refused",
        b"raises",
        b"says much",
        b"is wrong",
        b"hangs",
        b"is slow",
        b"takes memory",
    ):
        stats.feed(data)
    result = stats.result()
    found = {f["kind"]: base64.b64decode(f["input"]) for f in result["findings"]}
    assert {
        "IndexError": b"raises",
        "MESSAGE": b"says much",
        "AssertionError": b"is wrong",
        "HANG": b"hangs",
        "MEMORY": b"takes memory",
    }.items() <= found.items()
    assert "SLOW" in found and result["inputs"] == 8 and result["refused"] == {"SignalError": 2}


def test_the_same_seed_makes_the_same_inputs():
    import random

    for name in ("fixations", "questions", "weights", "archive"):
        seeds = PARSERS[name].seeds()
        first, second = (
            [mutate.mutated(seeds, PARSERS[name].mutation, rng) for _ in range(20)]
            for rng in (random.Random(5), random.Random(5))
        )
        if name != "archive":  # an archive records its creation time
            assert first == second
        assert len(set(first)) > 10
        assert all(len(data) <= 2 * mutate.LONGEST for data in first)


def test_coverage_counts_the_lines_of_the_parsers_functions():
    valid = PARSERS["hand"].seeds()
    valid_only, with_damaged = (
        measure_coverage(PARSERS["hand"], data)
        for data in (valid, [*valid, b"time_seconds,x,y\n0,1,640\n", b"\xff", b"x,y\n"])
    )
    assert (
        0.4 < valid_only["share"] < with_damaged["share"] <= 1
        and valid_only["lines"] == with_damaged["lines"] > 30
    )
    (missed,) = with_damaged["missed"].values()
    source = (ROOT / "plugins" / "modulate_hand" / "path.py").read_text().splitlines()
    assert any(
        "comes after" in source[line - 1] or "come after" in source[line - 1] for line in missed
    )  # no input here has times that fall


def test_counts_add_up_over_recorded_runs(tmp_path):
    import argparse

    result = fuzz.by_mutation("names", 50, 10.0, seed=1)
    for seed in (1, 2):
        fuzz_records.record(
            tmp_path / "fuzz.json",
            argparse.Namespace(seed=seed, engine="mutation"),
            {"names": result},
        )
    (row,) = fuzz_records.rows(tmp_path / "fuzz.json")
    assert row["tried"] == 100 and row["runs"] == 2 and row["right"] + row["refused"] == 100
    assert (
        row["fault"] == "damaged names of files in data files"
        and "refused with a typed error, nothing else" in row["happened"]
    )
    assert [
        (run["seed"], run["engine"])
        for run in json.loads((tmp_path / "fuzz.json").read_text())["runs"]
    ] == [(1, "mutation"), (2, "mutation")]
