"""docs/how-to/use-your-own-data.md, tried literally on three small clips."""

import csv
import re
import shlex

import pytest
import yaml
from PIL import Image

from modulate.cli import main
from modulate_table.dataset import Table
from modulate_table.params import TableParams
from tests.paths import ROOT
from tests.plugins.table.conftest import GAZE
from tests.video_files import write_video

PAGE = (ROOT / "docs/how-to/use-your-own-data.md").read_text(encoding="utf-8")


def blocks(kind):
    """The code blocks after comments of a kind: name → text."""
    pattern = rf"<!-- {kind}: (.+?) -->\n```\w+\n(.*?)^```"
    return dict(re.findall(pattern, PAGE, re.S | re.M))


COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S)
    for line in block.splitlines()
    if line.startswith("modulate ")
]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The folder of the page, as the working directory's `clips`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips" / "gaze").mkdir(parents=True)
    for number in (1, 2, 3, 4):
        name = f"kitchen-0{number}"
        write_video(tmp_path / "clips" / f"{name}.mp4", size=(128, 96 + 16 * number))
        (tmp_path / "clips" / "gaze" / f"{name}.csv").write_text(GAZE)
    Image.new("RGB", (64, 48)).save(tmp_path / "clips" / "table.png")
    for name, text in blocks("file").items():
        (tmp_path / name).write_text(text)
    return tmp_path


def run(command, *more):
    with pytest.raises(SystemExit) as ended:
        main([*shlex.split(command)[1:], *more])
    return ended.value.code


def test_the_page_s_commands(own, capsys):
    data_check, check, train, export = COMMANDS
    assert run(data_check) == 0
    out = capsys.readouterr().out
    assert "Samples: 2 train, 1 val, 1 test." in out and "free text" in out
    assert run(check, "--cache", "cache") == 0, capsys.readouterr().out
    quick = "training.stages=[{name: modulator, train: [modulator], epochs: 1}]"
    assert run(train, quick, "evaluation.bootstrap=100", "--cache", "cache") == 0
    assert run(export) == 0
    with (own / "answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["condition"] for row in rows} >= {"signal", "none", "blank", "shuffled"}
    first = rows[0]
    assert first["question"] == "what is the viewer looking at?" and first["error"] == ""
    words = ("red mug", "green plate", "white bowl", "red box")
    assert first["right_answer"] in words and first["given_answer"] == first["text"]


CSV = {
    "other names": "clip,prompt,label,participant\nkitchen-01,which?,mug,P1\n",
    "several columns": "video,question,option_a,option_b,option_c,answer\n"
    "kitchen-01.mp4,which?,mug,plate,bowl,B\n",
    "splits": "video,question,answer,participant\nkitchen-01.mp4,which?,mug,P1\n"
    "kitchen-02.mp4,which?,mug,P1\nkitchen-03.mp4,which?,mug,P2\n",
}


def test_the_page_s_parameters(own):
    found = blocks("params")
    assert found.keys() == CSV.keys()
    sets = {}
    for name, text in found.items():
        (own / "clips" / f"{name}.csv").write_text(CSV[name])
        params = yaml.safe_load(text)
        params.setdefault("split", {"shares": {"test": 1.0}})
        data = Table(TableParams(root=own / "clips", files=f"{name}.csv", **params))
        sets[name] = {split: data.samples(split) for split in ("train", "val", "test")}
    (sample,) = sets["other names"]["test"]
    assert sample.clip.file.name == "kitchen-01.mp4" and sample.groups == {"participant": "P1"}
    assert sample.clip.signals["gaze"].name == "kitchen-01.csv" and sample.task == "kitchen"
    (sample,) = sets["several columns"]["test"]
    assert sample.options == ("mug", "plate", "bowl") and sample.answer == 1
    assert sorted(len(items) for items in sets["splits"].values()) == [0, 1, 2]


def test_the_page_s_tables(own):
    found = blocks("table")
    one = {"shares": {"test": 1.0}}
    (own / "clips" / "o.csv").write_text(found["options"])
    options = Table(TableParams(root=own / "clips", files="o.csv", split=one)).samples("test")
    assert [(sample.options, sample.answer) for sample in options] == [
        (("mug", "plate", "bowl"), 0),
        (("mug", "plate", "bowl"), 1),
    ]
    (own / "clips" / "s.jsonl").write_text(found["several"])
    several = Table(TableParams(root=own / "clips", files="s.jsonl", split=one)).samples("test")
    assert [len(sample.clips) for sample in several] == [2, 1]
    assert several[1].clip.is_image and not several[0].clips[1].signals


def test_the_page_names_every_field():
    from modulate_table.params import FIELDS

    table = PAGE.partition("## Columns")[2].partition("## Options")[0]
    named = set(re.findall(r"`(\w+)`", table))
    assert named >= set(FIELDS)
