"""What the README shows runs, and its tree names what there is."""

import ast
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from modulate.cli import layout
from modulate.hosts.host import understand
from modulate.interfaces.frames import Frames
from modulate.interfaces.messages import VideoClip, user_turn
from modulate.utils.paths import resolve
from tests.paths import ROOT
from tests.tiny import assistant_of_shipped, modulation_of_shipped, our_hooks
from tests.video_files import write_video

README = (ROOT / "README.md").read_text()


def python_blocks():
    """The README's two examples: asking a question, and attaching to a loaded model."""
    asking, attaching = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
    return asking, attaching


def tree():
    """Paths of the README's tree, read by indentation."""
    (text,) = re.findall(
        r"^```\n(.*?)^```", README[README.index("## What is where") :], re.M | re.S
    )
    paths = []
    above = []
    for line in text.splitlines():
        name = line.split()[0]
        above[(len(line) - len(line.lstrip())) // 2 :] = [name]
        paths.append("".join(above))
    return paths


@pytest.fixture(scope="module")
def example():
    """A small real host, a prompt with one clip for it, and frame features on the clip's grid."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = resolve("package:modulate_tabletop/host")
    host = AutoModelForImageTextToText.from_pretrained(folder).eval().requires_grad_(False)
    processor = AutoProcessor.from_pretrained(folder)
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    clip = VideoClip(Frames(images, (0.0, 1.0, 2.0, 3.0)), (0.0, 3.0))
    encoded = understand(host).encode(processor, user_turn(clip, "Describe the table."))
    (grid,) = encoded.grids
    features = torch.randn(
        grid.steps,
        grid.tokens_per_step,
        12,
        generator=torch.Generator().manual_seed(0),
    )
    return {"host": host, "inputs": encoded.inputs, "grid": grid, "features": features}


def save_modulation(host, folder):
    torch.manual_seed(0)
    modulation = modulation_of_shipped(host)
    for projection in modulation.out:
        torch.nn.init.normal_(projection.weight, std=0.5)
    modulation.save_pretrained(folder)


def test_a_question_is_asked_in_six_lines(tmp_path, monkeypatch, capsys):
    code, _ = python_blocks()
    assert len([line for line in code.splitlines() if line.strip()]) <= 6
    monkeypatch.chdir(tmp_path)
    assistant_of_shipped().modulation.save_pretrained(tmp_path / "runs" / "gazeqwen_tiny")
    write_video(tmp_path / "kitchen.mp4", seconds=4.0)
    Path("gaze.csv").write_text(
        "start_time,end_time,center_x,center_y\n0.0,1.2,0.2,0.7\n1.5,3.0,0.8,0.4\n"
    )
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    answer = names["answer"]
    assert len(answer.text.split()) > 1
    assert answer.text != answer.without_signal.text
    assert answer.report.active_steps == (2,)
    out = capsys.readouterr().out
    assert "without gaze:" in out and "AttachmentReport(" in out


def test_the_example_of_attaching_has_ten_lines_and_does_what_it_says(
    example, tmp_path, monkeypatch, capsys
):
    _, code = python_blocks()
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    monkeypatch.chdir(tmp_path)
    save_modulation(example["host"], tmp_path / "my-modulation")
    Path("fixations.csv").write_text(
        "start_time,end_time,center_x,center_y\n0.0,1.2,0.2,0.7\n1.5,3.0,0.8,0.4\n"
    )
    before = example["host"](**example["inputs"]).logits
    names = dict(example)
    exec(compile(code, "README.md", "exec"), names)
    new = names["answer"].shape[1] - example["inputs"]["input_ids"].shape[1]
    assert 1 < new <= 20
    report = names["attachment"].report()
    assert report.forwards == new
    assert report.tokens == example["grid"].tokens and report.active_steps == (
        example["grid"].steps,
    )
    assert all(ratio > 0 for ratio in report.ratio.values()) and set(report.ratio) == {0, 1}
    assert "Report(" in capsys.readouterr().out
    assert not our_hooks(example["host"])
    assert torch.equal(before, example["host"](**example["inputs"]).logits)


def test_the_python_example_uses_only_names_that_the_text_above_it_introduces(example):
    used = {
        node.id
        for node in ast.walk(ast.parse(python_blocks()[1]))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    text = README[: README.rindex("```python")]
    for name in used & example.keys():
        assert f"`{name}`" in text


def test_every_entry_of_the_tree_exists():
    assert [path for path in tree() if not (ROOT / path).exists()] == []


def test_the_tree_names_every_top_level_entry_package_and_plugin():
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("needs a git checkout: what is tracked is what must be named")
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    top = {
        file.split("/")[0] + ("/" if "/" in file else "")
        for file in files
        if not file.startswith(".")
    }
    packages = {part.path for part in layout.parts()}
    plugins = {f"plugins/{path.parent.name}/" for path in (ROOT / "plugins").glob("*/__init__.py")}
    assert sorted((top | packages | plugins) - set(tree())) == []


def test_the_commands_named_exist():
    import typer.main

    from modulate.cli import build

    commands = set(typer.main.get_command(build()).commands)
    named = {m[1] for m in re.finditer(r"^modulate (\w+)", README, re.M)}
    targets = {m[1] for m in re.finditer(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)}
    assert named and named <= commands
    assert set(re.findall(r"^make (\w+)", README, re.M)) == {"demo", "test"} <= targets


def test_the_results_table_has_the_figures_of_the_study():
    study = json.loads((ROOT / "docs" / "results" / "tabletop.json").read_text())
    cell = lambda found: "{:.1f} [{:.1f}, {:.1f}]".format(
        *(100 * share for share in (found["overall"], *found["interval"]))
    )
    results = README[README.index("## Results") :]
    shown = {
        name: cells.strip(" |").split(" | ")
        for name, cells in re.findall(r"^\| `(\w+)` \|(.+)$", results, re.M)
    }
    assert shown == {
        name: [cell(encoder["conditions"][c]) for c in ("signal", "shuffled", "blank", "none")]
        for name, encoder in study["encoders"].items()
    }
    assert (
        f"LoRA alone reaches {cell(study['lora_only'])}, the same modulation trained without gaze"
        f" {cell(study['gaze_free'])}." in results
    )
