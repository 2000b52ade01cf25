"""`modulate data check` on recipes, tables and folders."""

import json

import pytest

from modulate.cli.app import build
from tests.paths import SMALL
from tests.video_files import write_video

GAZE = "start_time,end_time,center_x,center_y\n0.2,0.9,0.4,0.5\n"


@pytest.fixture
def folder(tmp_path):
    """Three clips with gaze, and a table of questions."""
    rows = ["video,question,answer,gaze"]
    for number, name in enumerate("abc"):
        write_video(tmp_path / f"{name}.mp4", size=(64, 32 + 16 * number))
        (tmp_path / f"{name}.gaze").write_text(GAZE)
        rows.append(f"{name}.mp4,What is it?,a cup,{name}.gaze")
    (tmp_path / "q.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


@pytest.mark.parametrize("target", ["", "q.csv"])
def test_a_table_and_its_folder_need_no_recipe(folder, modulate, target):
    code, out, _ = modulate("data", "check", folder / target)
    assert code == 0, out
    assert "Questions by task and split" in out and "Samples: 1 train, 1 val, 1 test." in out
    assert "free text" in out and out.endswith("Nothing here would fail in training.\n")


def test_bad_rows_are_printed_with_their_lines_and_fail(folder, modulate):
    with (folder / "q.csv").open("a") as file:
        file.writelines(f"none{n}.mp4,What?,x,a.gaze\n" for n in range(30))
    code, out, _ = modulate("data", "check", folder)
    assert code == 1 and "error: 30 of 33 rows of q.csv cannot be used." in out
    assert "  q.csv, line 5: video: there is no file at" in out
    assert "… and 10 more; --json prints all" in out and out.endswith("1 error.\n")
    code, out, _ = modulate("data", "check", folder, "--json")
    found = json.loads(out)
    assert code == 1 and len(found["findings"][0]["rows"]) == 30
    code, out, _ = modulate("data", "check", folder, "data.params.skip_bad_rows=true")
    assert code == 0 and "are left out (skip_bad_rows)" in out


def test_overrides_and_the_parameters_of_a_recipe_reach_the_data(folder, modulate, tmp_path):
    code, out, _ = modulate("data", "check", folder, "data.params.split.shares={test: 1.0}")
    assert code == 0 and "3 test" in out
    code, _, err = modulate("data", "check", folder, "data.params.splits=1")
    assert code == 1 and "splits: unknown key. Did you mean 'split'" in err
    recipe = tmp_path / "own.yaml"
    recipe.write_text(
        f"extends: {SMALL}\ndata:\n  name: table\n  params:\n    split: {{shares: {{test: 1.0}}}}\n"
    )
    args = ["data", "check", folder, "--recipe", recipe]
    code, out, _ = modulate(*args)
    assert code == 0 and "3 test" in out


def test_a_recipe_s_own_data_are_checked_and_may_be_generated_first(work, modulate, tmp_path):
    folder, _, _ = work
    code, out, _ = modulate("data", "check", SMALL, f"data.params.root={folder}/world")
    assert code == 0 and "Questions by task and split" in out, out
    fresh = f"data.params.root={tmp_path}/world"
    code, out, _ = modulate("data", "check", SMALL, fresh)
    assert code == 1 and "does not exist" in out
    code, out, _ = modulate("data", "check", SMALL, fresh, "--prepare")
    assert code == 0, out


def test_unknown_data_and_misplaced_options_are_refused(modulate, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, err = modulate("data", "check", tmp_path / "empty")
    assert code == 1 and "No data set recognizes the files in" in err
    code, _, err = modulate("data", "check", "gazeqwen_tiny", "--recipe", "gazeqwen_tiny")
    assert code == 1 and "--recipe is for data" in err
    code, _, err = modulate("data", "check", "gazeqwen_tinny")
    assert code == 1 and "No recipe 'gazeqwen_tinny'" in err


def test_the_group_holds_the_commands_of_plugins_and_building_twice_adds_nothing(modulate):
    for _ in range(2):
        app = build()
    (group,) = [
        group.typer_instance
        for group in app.registered_groups
        if group.typer_instance.info.name == "data"
    ]
    names = [command.name or command.callback.__name__ for command in group.registered_commands]
    assert names == ["check", "fixations", "export"]
