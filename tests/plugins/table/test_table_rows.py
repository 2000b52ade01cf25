"""Rows of a table: columns, clips, windows, options and answers; bad rows are named."""

import json

import pytest

from modulate.errors import DataError, MissingFileError
from modulate_table.params import TableParams
from tests.video_files import write_video


def samples(table):
    return table.samples("all")


def problems(table):
    return [str(problem) for problem in table.problems]


ROWS = "".join(f"{name}.mp4,What is this?,a cup,gaze/{name}.csv\n" for name in "abcdef")


def test_a_plain_csv_needs_no_mapping(table, folder):
    data = table("q.csv", f"video,question,answer,gaze\n{ROWS}")
    sample = samples(data)[0]
    assert (sample.id, sample.task, sample.question) == ("q.csv:2", "questions", "What is this?")
    assert sample.is_free_text and sample.answers == ("a cup",) and sample.answer is None
    assert sample.clip.file == folder / "a.mp4"
    assert sample.clip.signals == {"gaze": folder / "gaze" / "a.csv"}
    assert sample.clip.window == (0.0, 2.0), "the whole video"
    assert sample.extra == {"source": "q.csv, line 2"}
    assert len(samples(data)) == 6


def test_columns_of_other_names_templates_and_constants(table, folder):
    data = table(
        "q.csv",
        "clip,q,a,who\na,What?,cup,P1\n",
        columns={
            "video": "{clip}.mp4",
            "question": "q",
            "answer": "a",
            "gaze": "gaze/{clip}.csv",
            "id": "{who}/{clip}",
        },
        constants={"task": "objects", "start": 0.5},
        groups=("who",),
        split={"shares": {"test": 1.0}},
    )
    (sample,) = samples(data)
    assert (sample.id, sample.task, sample.groups) == ("P1/a", "objects", {"who": "P1"})
    assert sample.clip.window == (0.5, 2.0)
    assert sample.clip.signals == {"gaze": folder / "gaze" / "a.csv"}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"columns": {"questoin": "q"}}, "neither a field of a row nor a kind of signal. Did you"),
        ({"columns": {"video": ["a", "b"]}}, "only options may be in several"),
        ({"columns": {"video": "v"}, "constants": {"video": "w"}}, "keep one"),
        ({"constants": {"gase": "w"}}, "neither a field"),
        ({"hub": "a/b", "files": "t.csv"}, "not from both"),
        ({"revision": "main"}, "no effect without `hub`"),
        ({"files": {"trian": "t.csv"}}, "'trian' is none. Did you mean 'train'"),
        ({"split": {"shares": {"train": 0.5}}}, "must add up to 1; got 0.5"),
        ({"split": {"by": "seed", "names": {"a": "train"}}}, "no effect with by: seed"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(params, message):
    with pytest.raises(ValueError, match=message):
        TableParams(**params)


@pytest.mark.parametrize(
    ("header", "params", "message"),
    [
        ("video,q,answer", {}, r"no column question; its columns are 'video', 'q', 'answer'"),
        ("clip,question,answer", {}, "no column video or videos or image or images"),
        ("video,question,reply", {}, "no column answer or answers"),
        ("video,question,answer", {"columns": {"gaze": "gase"}}, "'gase', which the table lacks"),
        ("video,question,answer", {"groups": ["who"]}, "groups names the column 'who'"),
        ("video,question,answer,time,start", {}, "both time and start; say which is meant"),
        ("video,videos,question,answer", {}, "both video and videos"),
        ("video,question,answer", {"seconds": 3}, "`seconds` is the length of windows"),
        ("video;question;answer", {}, "name another separator with `delimiter`"),
        ("video,video,answer", {}, "names the column 'video' more than once"),
    ],
)
def test_a_table_without_what_it_needs_is_refused(table, header, params, message):
    separator = ";" if ";" in header else ","
    cells = header.count(separator) * separator
    with pytest.raises(DataError, match=message):
        table("q.csv", f"{header}\nx{cells}\n", **params).prepare()


def test_a_field_may_be_left_out_on_purpose(table):
    data = table(
        "q.csv",
        "video,question,answer,time,start\na.mp4,What?,cup,2020-01-01,1\n",
        columns={"time": None},
        split={"shares": {"test": 1.0}},
    )
    assert samples(data)[0].clip.window == (1.0, 2.0)


def test_windows_by_start_and_end_by_time_and_of_the_whole_video(table):
    head = "video,question,answer"
    one = {"split": {"shares": {"test": 1.0}}}
    both = table("q.csv", f"{head},start,end\na.mp4,?,x,0.5,00:01\nb.mp4,?,x,,1.5\n", **one)
    assert [sample.clip.window for sample in samples(both)] == [(0.5, 1.0), (0.0, 1.5)]
    timed = table("q.csv", f"{head},time\na.mp4,?,x,1.5\n", seconds=1.0, **one)
    assert samples(timed)[0].clip.window == (0.5, 1.5)
    early = table("q.csv", f"{head},time\na.mp4,?,x,0.5\n", seconds=1.0, **one)
    assert samples(early)[0].clip.window == (0.0, 0.5)


def test_several_clips_and_pictures(table, folder):
    rows = [
        {
            "videos": ["a.mp4", "b.mp4"],
            "image": "red.png",
            "question": "Which?",
            "answer": "x",
            "gaze": ["gaze/a.csv", None, None],
            "start": [0.5, 1, None],
            "end": [1.5, 2, None],
        },
        {"image": "red.png", "question": "?", "answer": "x", "gaze": "gaze/a.csv"},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    data = table("q.jsonl", text, split={"shares": {"test": 1.0}})
    several, picture = samples(data)
    assert [clip.file.name for clip in several.clips] == ["a.mp4", "b.mp4", "red.png"]
    assert [clip.window for clip in several.clips] == [(0.5, 1.5), (1.0, 2.0), (0.0, 0.0)]
    assert [list(clip.signals) for clip in several.clips] == [["gaze"], [], []]
    assert [clip.is_image for clip in several.clips] == [False, False, True]
    assert picture.clip.is_image and picture.clip.signals["gaze"] == folder / "gaze" / "a.csv"


def test_several_clips_in_a_csv(table):
    data = table(
        "q.csv",
        "videos,question,answer,gaze,start,end\n"
        "a.mp4|b.mp4,Which?,x,gaze/a.csv|gaze/b.csv,0|0.5,1|2\n",
        split={"shares": {"test": 1.0}},
    )
    (sample,) = samples(data)
    assert [clip.window for clip in sample.clips] == [(0.0, 1.0), (0.5, 2.0)]
    assert [clip.signals["gaze"].name for clip in sample.clips] == ["a.csv", "b.csv"]


OPTIONS = [
    ("options,answer", "cup|knife|a plate,knife", {}),
    ("options,answer", '"[""cup"", ""knife"", ""a plate""]",B', {}),
    ("options,answer", "A. cup|B. knife|C. a plate,B. knife", {}),
    ("options,answer", "cup / knife / a plate,(b)", {"separator": "/"}),
    ("x,y,z,answer", "cup,knife,a plate,1", {"answers_are": "index"}),
    ("x,y,z,answer", "cup,knife,a plate,2", {"answers_are": "index_from_1"}),
]


@pytest.mark.parametrize(("head", "cells", "params"), OPTIONS)
def test_options_and_right_ones_in_every_form(table, head, cells, params):
    if head.startswith("x"):
        params = {**params, "columns": {"options": ("x", "y", "z")}}
    data = table(
        "q.csv",
        f"video,question,{head}\na.mp4,Which?,{cells}\n",
        split={"shares": {"test": 1.0}},
        **params,
    )
    (sample,) = samples(data)
    assert sample.options == ("cup", "knife", "a plate") and sample.answer == 1
    assert not sample.is_free_text and sample.answers == ()


def test_an_answer_that_can_be_read_in_two_ways_is_refused(table):
    head = "video,question,options,answer\n"
    unclear = table("q.csv", f"{head}a.mp4,?,cup|knife|pot,1\nb.mp4,?,cup|knife|pot,2\n")
    message = r"line 2: the answer '1' can be read as index \('knife'\) or index_from_1 \('cup'\)"
    with pytest.raises(DataError, match=message):
        unclear.prepare()
    clear = table("q.csv", f"{head}a.mp4,?,cup|knife|pot,1\nb.mp4,?,cup|knife|pot,3\n")
    clear_rows = clear.rows.questions
    assert [question.answer for question in clear_rows] == [0, 2], "3 is no index from 0"


def test_free_text_may_have_several_answers(table):
    data = table(
        "q.csv",
        "video,question,answer,answers\na.mp4,?,a cup,a cup|a mug\nb.mp4,?,,a pot\n",
        split={"shares": {"test": 1.0}},
    )
    assert [sample.answers for sample in samples(data)] == [("a cup", "a mug"), ("a pot",)]


BAD = [
    ("a.mp4,What?,cup|knife,spoon,", "the answer 'spoon' is none of the options 'cup', 'knife'"),
    ("a.mp4,,cup|knife,cup,", "question must be a text; got nothing"),
    ("a.mp4,What?,cup|knife,,", "answer is empty"),
    ("a.mp4,What?,cup,cup,", "options must hold two options or more; got 'cup'"),
    ("a.mp4,What?,cup|cup,cup,", "options holds the same option twice"),
    ("a.mp4,What?,cup||knife,cup,", "value 2 of options must be a text; got nothing"),
    ("a.mp4,What?,B. cup|A. knife,cup,", "must run from A in order"),
    ("\"a.mp4\",What?,\"['cup', 'knife']\",cup,", "Python writes lists with other quotes"),
    ("z.mp4,What?,cup|knife,cup,", "video: there is no file at"),
    ("../a.mp4,What?,cup|knife,cup,", "set allow_outside: true"),
    ("/etc/passwd,What?,cup|knife,cup,", "leaves the data set's folder"),
    ("red.png,What?,cup|knife,cup,", "red.png is a picture, which belongs in `image`"),
    (",What?,cup|knife,cup,", "it names no video and no image"),
    ("a.mp4,What?,cup|knife,cup,soon", "end must be seconds, or MM:SS or HH:MM:SS"),
    ("a.mp4,What?,cup|knife,cup,-1", "end must be seconds"),
    ("a.mp4,What?,cup|knife,cup,0", "the window of a.mp4 must end after it starts; got 0 to 0"),
    ("a.mp4,What?,cup|knife,cup,1,extra", "it has 6 cells, but the header has 5"),
    ("broken.mp4,What?,cup|knife,cup,", "cannot be opened as a video"),
]


def test_every_bad_row_is_named_with_its_line_and_the_table_refused(table, folder):
    (folder / "broken.mp4").write_bytes(b"no video")
    good = "a.mp4,What?,cup|knife,cup,1\n"
    data = table(
        "q.csv",
        f"video,question,options,answer,end\n{good}" + "".join(f"{row}\n" for row, _ in BAD),
    )
    found = problems(data)
    assert len(found) == len(BAD)
    for line, (_, reason) in enumerate(BAD, 3):
        (text,) = [problem for problem in found if problem.startswith(f"q.csv, line {line}: ")]
        assert reason in text
    with pytest.raises(DataError) as refused:
        data.samples("train")
    text = str(refused.value)
    assert f"{len(BAD)} of {len(BAD) + 1} rows of q.csv cannot be used:" in text
    assert "… and 13 more" in text and "skip_bad_rows=true" in text


def test_bad_rows_are_left_out_only_on_request(table):
    rows = f"video,question,answer,gaze\n{ROWS}z.mp4,What?,cup,gaze/a.csv\n"
    data = table("q.csv", rows, skip_bad_rows=True)
    assert len(samples(data)) == 6 and len(problems(data)) == 1
    assert data.skipped_rows() == {"q.csv": 1}
    assert table("q.csv", f"video,question,answer,gaze\n{ROWS}").skipped_rows() == {}


TYPED = [
    ({"question": 3.5}, "question must be a text; got 3.5 (float)"),
    ({"question": True}, "question must be a text; got True (bool)"),
    ({"question": ["a"]}, "question must be a text; got ['a'] (list)"),
    ({"options": 7}, "options must be a list; got 7 (int)"),
    ({"options": ["a", 1.5]}, "value 2 of options must be a text; got 1.5 (float)"),
    ({"options": ["a", "b"], "answer": True}, "the answer True is none of the options"),
    ({"video": 5}, "video must be the name of a file; got 5 (int)"),
    ({"start": True}, "start must be seconds"),
    ({"start": [0, 1]}, "start has 2 values, but there are 1 clips"),
    ({"gaze": None}, "gaze is empty"),
    ({"answers": ["x"], "options": ["a", "b"]}, "it has `options` and `answers`"),
]


def test_types_of_json_are_not_converted(table):
    base = {"video": "a.mp4", "question": "?", "answer": "x", "gaze": "gaze/a.csv"}
    lines = [json.dumps({**base, **changes}) for changes, _ in TYPED]
    data = table("q.jsonl", "\n".join([json.dumps(base), *lines, "[1]", '{"a": 1', ""]))
    found = problems(data)
    for line, (_, reason) in enumerate(TYPED, 2):
        (text,) = [problem for problem in found if problem.startswith(f"q.jsonl, line {line}: ")]
        assert reason in text
    rest = [text for text in found if "line 13:" in text or "line 14:" in text]
    assert len(rest) == 2 and "a row must be an object; got [1]" in rest[0] + rest[1]
    assert "not valid JSON" in rest[0] + rest[1]


def test_an_id_belongs_to_one_row(table):
    rows = "id,video,question,answer\n1,a.mp4,?,x\n2,b.mp4,?,x\n1,c.mp4,?,x\n"
    assert problems(table("q.csv", rows)) == ["q.csv, line 4: the id 1 is that of q.csv, line 2"]


def test_paths_outside_of_the_folder_on_request(table, tmp_path_factory):
    elsewhere = write_video(tmp_path_factory.mktemp("elsewhere") / "x.mp4")
    text = f"video,question,answer\n{elsewhere},?,x\n"
    assert "leaves the data set's folder" in problems(table("q.csv", text))[0]
    data = table("q.csv", text, allow_outside=True, split={"shares": {"test": 1.0}})
    assert samples(data)[0].clip.file == elsewhere


def test_absolute_paths_inside_the_folder_are_fine(table, folder):
    text = f"video,question,answer\n{folder.resolve()}/a.mp4,?,x\n"
    assert problems(table("q.csv", text)) == []


def test_a_missing_table_is_named(folder):
    from modulate_table.dataset import Table

    with pytest.raises(MissingFileError, match="There is no table at"):
        Table(TableParams(root=folder, files="none.csv")).prepare()
    with pytest.raises(MissingFileError, match="There is no folder"):
        Table(TableParams(root=folder / "none")).prepare()
