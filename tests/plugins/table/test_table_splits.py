"""Splits of a table: given ones are checked for leaks, drawn ones have none."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modulate.errors import DataError
from modulate.interfaces.sample import SampleClip
from modulate_table.params import SPLITS, Split, TableParams
from modulate_table.rows import Question
from modulate_table.splits import assign_splits

HEAD = "video,question,answer"


def of_splits(table):
    return {split: [sample.id for sample in table.samples(split)] for split in SPLITS}


def test_a_column_is_obeyed_under_the_usual_names(table):
    names = ("train", "Training", "dev", "validation", "test", "unused")
    rows = "".join(f"{video}.mp4,?,x,{name}\n" for video, name in zip("abcdef", names, strict=True))
    found = of_splits(table("q.csv", f"{HEAD},split\n{rows}"))
    assert found == {
        "train": ["q.csv:2", "q.csv:3"],
        "val": ["q.csv:4", "q.csv:5"],
        "test": ["q.csv:6"],
    }


def test_other_names_need_an_explanation(table):
    text = f"{HEAD},split\na.mp4,?,x,train\nb.mp4,?,x,holdout\n"
    with pytest.raises(DataError, match="line 3: split must be train, val, test or unused; got"):
        table("q.csv", text).prepare()
    data = table("q.csv", text, split={"names": {"holdout": "test"}})
    assert of_splits(data)["test"] == ["q.csv:3"]


def test_a_column_that_shows_a_video_in_two_splits_is_refused(table):
    text = f"{HEAD},split\na.mp4,?,x,train\nb.mp4,?,x,train\na.mp4,!,x,test\n"
    message = r"1 videos, pictures or groups .*a\.mp4 is in train \(q\.csv, line 2\) and in test"
    with pytest.raises(DataError, match=message):
        table("q.csv", text).prepare()
    data = table("q.csv", text, allow_shared_videos=True)
    assert len(data.samples("train")) == 2 and len(data.samples("test")) == 1


def test_a_column_that_shares_a_group_is_refused_too(table):
    text = f"{HEAD},split,who\na.mp4,?,x,train,P1\nb.mp4,?,x,test,P1\n"
    with pytest.raises(DataError, match=r"who P1 is in train \(q\.csv, line 2\) and in test"):
        table("q.csv", text, split={"groups": ["who"]}).prepare()
    assert len(table("q.csv", text).samples("test")) == 1


def test_a_copy_under_another_name_is_the_same_video(table, folder):
    (folder / "copy.mp4").write_bytes((folder / "a.mp4").read_bytes())
    text = f"{HEAD},split\na.mp4,?,x,train\ncopy.mp4,?,x,test\n"
    with pytest.raises(DataError, match=r"copy\.mp4 is in train \(q\.csv, line 2\) and in test"):
        table("q.csv", text).prepare()
    rows = "a.mp4,?,x\ncopy.mp4,?,x\nb.mp4,?,x\n"
    halves = {"shares": {"train": 0.5, "test": 0.5}}
    found = of_splits(table("q.csv", f"{HEAD}\n{rows}", split=halves))
    assert ["q.csv:2", "q.csv:3"] in found.values()


def test_files_by_split(table, folder):
    (folder / "train.csv").write_text(f"{HEAD}\na.mp4,?,x\nb.mp4,?,x\n")
    (folder / "test-1.csv").write_text(f"{HEAD}\nc.mp4,?,x\n")
    by_name = table("dev.csv", f"{HEAD}\nd.mp4,?,x\n")
    whole = type(by_name)(TableParams(root=folder))
    expected = {"train": ["train.csv:2", "train.csv:3"], "val": ["dev.csv:2"]}
    assert of_splits(whole) == {**expected, "test": ["test-1.csv:2"]}
    named = type(by_name)(
        TableParams(root=folder, files={"train": ("train.csv", "test-1.csv"), "test": "dev.csv"})
    )
    assert of_splits(named)["train"] == ["train.csv:2", "train.csv:3", "test-1.csv:2"]


def test_several_tables_of_unclear_splits_must_be_named(table, folder):
    (folder / "more.csv").write_text(f"{HEAD}\na.mp4,?,x\n")
    data = table("q.csv", f"{HEAD}\na.mp4,?,x\n")
    with pytest.raises(DataError, match=r"holds 2 tables: more\.csv, q\.csv\. Name those to read"):
        type(data)(TableParams(root=folder)).prepare()


def test_given_splits_where_there_are_none_are_refused(table):
    with pytest.raises(DataError, match="needs a column `split`, `files` by split, or"):
        table("q.csv", f"{HEAD}\na.mp4,?,x\n", split={"by": "given"}).prepare()


def test_a_column_does_not_count_where_another_split_is_asked_for(table):
    rows = "".join(f"{video}.mp4,?,x,whatever\n" for video in "abcdef")
    data = table("q.csv", f"{HEAD},split\n{rows}", split={"by": "seed"})
    assert sum(map(len, of_splits(data).values())) == 6


def test_seeds_draw_different_splits_of_the_asked_shares(table):
    rows = "".join(f"{video}.mp4,?,x\n" for video in "abcdef" for _ in range(2))
    drawn = [
        of_splits(table("q.csv", f"{HEAD}\n{rows}", split={"seed": seed})) for seed in range(4)
    ]
    assert {tuple(map(len, found.values())) for found in drawn} == {(8, 2, 2)}
    assert len({str(found) for found in drawn}) > 1
    again = of_splits(table("q.csv", f"{HEAD}\n{rows}", split={"seed": 0}))
    assert again == drawn[0]


def test_fewer_videos_than_splits_are_refused(table):
    text = f"{HEAD}\na.mp4,?,x\nb.mp4,?,x\n"
    with pytest.raises(DataError, match="2 groups of videos cannot be split into train, val, test"):
        table("q.csv", text).prepare()
    two = table("q.csv", text, split={"shares": {"train": 0.5, "test": 0.5}})
    assert tuple(map(len, of_splits(two).values())) == (1, 0, 1)


ROOT = Path("/root")


def question(number, files, groups=()):

    return Question(
        f"row {number}",
        str(number),
        "t",
        tuple(SampleClip(ROOT / name, (0.0, 1.0)) for name in files),
        "?",
        (),
        None,
        False,
        ("x",),
        {},
        dict(groups),
        None,
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 20), min_size=1, max_size=2, unique=True), st.integers(0, 9)
        ),
        min_size=12,
        max_size=60,
    ),
    st.sampled_from(["seed", "hash"]),
    st.booleans(),
    st.integers(0, 5),
)
def test_no_drawn_split_shares_a_video_or_a_group(rows, by, grouped, seed):

    split = Split(by=by, seed=seed, groups=("who",) if grouped else ())
    questions = [
        question(number, [f"{name}.mp4" for name in files], {"who": str(who)} if grouped else {})
        for number, (files, who) in enumerate(rows)
    ]
    try:
        found = assign_splits(questions, TableParams(split=split), ROOT)
    except DataError as error:
        assert "cannot be split" in str(error)
        return
    assert sum(map(len, found.values())) == len(rows)
    seen = {}
    for name, part in found.items():
        for one in part:
            for unit in [*(clip.file for clip in one.clips), *one.units.values()]:
                assert seen.setdefault(unit, name) == name
    if by == "seed":
        assert all(found[name] for name in SPLITS)


def test_hashed_splits_keep_old_rows_where_they_are():

    params = TableParams(split=Split(by="hash"))
    questions = [question(number, [f"{number}.mp4"]) for number in range(400)]
    before = assign_splits(questions[:300], params, ROOT)
    after = assign_splits(questions, params, ROOT)
    for name in SPLITS:
        assert {one.id for one in before[name]} <= {one.id for one in after[name]}
    counts = Counter({name: len(part) for name, part in after.items()})
    assert 250 < counts["train"] < 310 and 35 < counts["val"] < 90
    other = assign_splits(questions, TableParams(split=Split(by="hash", seed=1)), ROOT)
    assert [one.id for one in other["test"]] != [one.id for one in after["test"]]
