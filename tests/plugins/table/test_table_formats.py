"""The same rows in every format give the same samples, and damaged files are named."""

import json
import sys

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from modulate.errors import DataError, PluginError
from modulate_table.dataset import Table
from modulate_table.params import TableParams

ROWS = [
    {
        "id": str(number),
        "video": f"{name}.mp4",
        "question": "Which is it?",
        "options": ["a cup", "a knife"],
        "answer": "a knife",
        "gaze": f"gaze/{name}.csv",
        "end": 1.5,
    }
    for number, name in enumerate("abcdef")
]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """The library's cache in a folder of this test."""
    folder = tmp_path_factory.mktemp("hf")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)


def as_csv(rows, delimiter=","):
    lines = [delimiter.join(rows[0])]
    for row in rows:
        cells = {**row, "options": "|".join(row["options"])}
        lines.append(delimiter.join(map(str, cells.values())))
    return "\n".join(lines) + "\n"


def writers(folder):
    table = pyarrow.Table.from_pylist(ROWS)
    saved = datasets.Dataset.from_list(ROWS)
    return {
        "q.csv": lambda: (folder / "q.csv").write_text(as_csv(ROWS), encoding="utf-8-sig"),
        "q.tsv": lambda: (folder / "q.tsv").write_text(as_csv(ROWS, "\t")),
        "q.jsonl": lambda: (folder / "q.jsonl").write_text(
            "\n".join(json.dumps(row) for row in ROWS)
        ),
        "q.json": lambda: (folder / "q.json").write_text(json.dumps(ROWS)),
        "q.parquet": lambda: pyarrow.parquet.write_table(table, folder / "q.parquet"),
        "saved": lambda: saved.save_to_disk(folder),
        "folder": lambda: [
            (folder / "data").mkdir(),
            pyarrow.parquet.write_table(table, folder / "data" / "train-00000-of-00001.parquet"),
        ],
    }


FORMATS = ("q.csv", "q.tsv", "q.jsonl", "q.json", "q.parquet", "saved", "folder")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_samples(folder, name):
    writers(folder)[name]()
    data = Table(TableParams(root=folder))
    samples = data.samples("all")
    assert sorted(sample.id for sample in samples) == list("012345")
    first = next(sample for sample in samples if sample.id == "0")
    assert first.options == ("a cup", "a knife") and first.answer == 1
    assert first.clip.window == (0.0, 1.5)
    assert first.clip.signals == {"gaze": folder / "gaze" / "a.csv"}
    (folder / "same.csv").write_text(as_csv(ROWS))
    same = Table(TableParams(root=folder, files="same.csv"))
    assert data.fingerprint() == same.fingerprint()


PLACES = {
    "q.csv": "q.csv, line 8: ",
    "q.tsv": "q.tsv, line 8: ",
    "q.jsonl": "q.jsonl, line 7: ",
    "q.json": "q.json, entry 6 (from 0): ",
    "q.parquet": "q.parquet, row 6 (from 0): ",
    "saved": "rows, row 6 (from 0): ",
    "folder": "rows, row 6 (from 0): ",
}


@pytest.mark.parametrize("name", FORMATS)
def test_bad_rows_are_named_in_every_format(folder, name, monkeypatch):
    bad = {**ROWS[0], "id": "6", "video": "none.mp4"}
    monkeypatch.setattr(f"{__name__}.ROWS", [*ROWS, bad])
    writers(folder)[name]()
    (problem,) = Table(TableParams(root=folder)).problems
    assert str(problem).startswith(PLACES[name] + "video: there is no file at")


def test_splits_of_a_saved_data_set_are_obeyed(folder):
    parts = {"train": ROWS[:3], "validation": ROWS[3:4], "test": ROWS[4:]}
    saved = {name: datasets.Dataset.from_list(rows) for name, rows in parts.items()}
    datasets.DatasetDict(saved).save_to_disk(folder)
    data = Table(TableParams(root=folder))
    assert [len(data.samples(split)) for split in ("train", "val", "test")] == [3, 1, 2]


def test_pictures_inside_a_table_and_labels_with_names(folder):
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "question": datasets.Value("string"),
            "answer": datasets.ClassLabel(names=["red", "green"]),
        }
    )
    rows = {"image": [str(folder / "red.png")] * 2, "question": ["?", "!"], "answer": [0, 1]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder / "set")
    data = Table(TableParams(root=folder / "set", split={"shares": {"test": 1.0}}))
    first, second = data.samples("test")
    assert first.clip.is_image and first.answers == ("red",) and second.answers == ("green",)
    assert first.clip.file == second.clip.file, "one picture is written once"
    assert first.clip.file.read_bytes() == (folder / "red.png").read_bytes()
    assert first.clip.file.parent == folder / "set" / "extracted"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.csv", b"", "holds no row"),
        ("q.csv", b"video,question\n", "holds no row"),
        ("q.csv", b"video,question\n\xff\xfe,x\n", "line 2 is not UTF-8 text"),
        ("q.csv", b'video,question\na,"x\n', "q.csv, line 2: unexpected end of data"),
        ("q.json", b"{}", "must hold a list of objects"),
        ("q.parquet", b"PAR1nonsense", "cannot be read as Parquet"),
        ("q.txt", b"x", "its name must end in one of .csv, .tsv"),
    ],
)
def test_damaged_tables_are_refused(folder, name, content, message):
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        Table(TableParams(root=folder, files=name)).prepare()


def test_what_the_library_cannot_read_is_named(folder):
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text("{}")
    with pytest.raises(DataError, match=f"The library `datasets` cannot read {folder}: "):
        Table(TableParams(root=folder)).prepare()


def test_a_cell_may_have_several_lines_and_the_next_row_keeps_its_number(folder):
    (folder / "q.csv").write_text(
        'video,question,answer\na.mp4,"Which\nis it?",x\n\nb.mp4,,x\n', newline=""
    )
    data = Table(TableParams(root=folder))
    assert [question.question for question in data.rows.questions] == ["Which\nis it?"]
    assert [problem.place for problem in data.problems] == ["q.csv, line 5"]


def test_the_fingerprint_changes_with_the_data_and_not_with_the_place(folder, tmp_path_factory):
    (folder / "q.csv").write_text(as_csv(ROWS))
    before = Table(TableParams(root=folder)).fingerprint()
    other = tmp_path_factory.mktemp("elsewhere")
    for path in folder.iterdir():
        (other / path.name).symlink_to(path)
    assert Table(TableParams(root=other, columns={"id": None})).fingerprint() == before
    assert Table(TableParams(root=folder, split={"seed": 1})).fingerprint() != before
    (folder / "q.csv").write_text(as_csv(ROWS).replace("1.5", "1.6"))
    assert Table(TableParams(root=folder)).fingerprint() != before


def test_a_data_set_of_the_hub_is_asked_for_by_name(monkeypatch, folder):
    asked = []

    def load(*args, **more):
        asked.append((args, more))
        return datasets.DatasetDict({"test": datasets.Dataset.from_list(ROWS)})

    monkeypatch.setattr(datasets, "load_dataset", load)
    params = TableParams(root=folder, hub="owner/name", config="gaze", revision="v1")
    assert len(Table(params).samples("test")) == 6
    assert asked == [(("owner/name", "gaze"), {"revision": "v1"})]
    with pytest.raises(DataError, match="no folder can replace them"):
        Table.with_root(params, folder)


def test_a_hub_that_does_not_answer_is_named(monkeypatch, folder):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="The library `datasets` cannot read owner/name: "):
        Table(TableParams(root=folder, hub="owner/name")).prepare()


def test_missing_libraries_are_named(monkeypatch, folder):

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    (folder / "q.parquet").write_bytes(b"PAR1")
    with pytest.raises(PluginError, match=r"need the library pyarrow: pip install 'modulate\[tab"):
        Table(TableParams(root=folder)).prepare()
    with pytest.raises(PluginError, match=r"library `datasets`: pip install 'modulate\[table\]'"):
        Table(TableParams(root=folder, hub="owner/name")).prepare()
