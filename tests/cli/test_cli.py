"""The command line: start without torch, errors without traceback, commands from train to ask."""

import json
import re
import subprocess
import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from typer.testing import CliRunner

from modulate import cli, plugins
from modulate.config.recipe import recipe_paths, shipped_paths, sweep_paths
from modulate.hookspecs import hookimpl
from tests.paths import ROOT, SMALL


@pytest.fixture
def modulate(capsys):
    """Return a function that runs a command in this process: (exit code, stdout, stderr)."""

    def run(*args):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(a) for a in args])
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return run


# --- start


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["ls"],
        ["ls", "--json"],
        ["plugins"],
        ["cat", "gazeqwen_tiny"],
        ["train", "--help"],
        ["features", "--help"],
        ["sweep", "--help"],
        ["recipe", "schema"],
    ],
)
def test_light_commands_import_no_torch(args):
    code = (
        "import sys, modulate.cli\n"
        f"try: modulate.cli.main({args!r})\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'av', 'rich.progress'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout, done.stderr


def test_help_names_every_command_and_those_of_plugins():
    result = CliRunner().invoke(cli.build(), ["--help"])
    assert result.exit_code == 0
    for name in (
        "features",
        "train",
        "eval",
        "sweep",
        "check",
        "ask",
        "plugins",
        "ls",
        "cat",
        "cp",
        "recipe",
        "tabletop",
    ):
        assert f"  {name} " in result.output


# --- listings


def test_ls_lists_every_shipped_recipe_and_sweep(modulate):
    code, out, _ = modulate("ls", "--json")
    assert code == 0 and {row["name"] for row in json.loads(out)} == shipped_paths().keys()
    assert {
        row["name"] for row in json.loads(out) if row["kind"] == "sweep"
    } == sweep_paths().keys()
    assert sweep_paths().keys().isdisjoint(recipe_paths())
    assert all(row["about"] and Path(row["path"]).is_file() for row in json.loads(out))
    assert "gazeqwen_tiny  " in modulate("ls")[1]


def test_plugins_lists_what_each_provides(modulate):
    rows = {row["name"]: row for row in json.loads(modulate("plugins", "--json")[1])}
    assert {"kind": "signal_encoder", "name": "coord_rel"} in rows["gaze"]["provides"]
    assert rows["gaze"]["source"] == "modulate (modulate_gaze)"
    assert rows["gaze"]["version"]
    assert not rows["gaze"]["error"]


def test_listing_and_help_show_what_the_environment_switches_off(modulate, monkeypatch):
    monkeypatch.setenv("MODULATE_PLUGINS", "gaze,hoss")
    registry = plugins.registry.__wrapped__()
    monkeypatch.setattr(plugins, "registry", lambda: registry)
    code, out, _ = modulate("plugins")
    assert code == 0
    assert "  off: MODULATE_PLUGINS does not name it" in out
    assert "  broken: MODULATE_PLUGINS names 'hoss'" in out
    assert f"  from: {ROOT / 'plugins' / 'modulate_vjepa' / '__init__.py'}" in out
    rows = {row["name"]: row for row in json.loads(modulate("plugins", "--json")[1])}
    assert rows["vjepa"]["off"]
    assert not rows["vjepa"]["provides"]
    assert not rows["gaze"]["off"]
    assert rows["hoss"]["error"]
    assert {"distribution", "version", "module", "location"} <= rows["gaze"].keys()
    assert rows["gaze"]["location"].endswith("modulate_gaze/__init__.py")
    code, out, _ = modulate("--help")
    assert code == 0
    assert "Switched off by MODULATE_PLUGINS: basics, dinov2, hand," in " ".join(out.split())
    code, _, err = modulate("cat", "gazeqwen_tiny", "--resolved")
    assert code == 1 and err.startswith("Error: MODULATE_PLUGINS names 'hoss'")


def test_plugins_lists_a_broken_one_with_its_reason(modulate, monkeypatch):
    registry = plugins.Registry([EntryPoint("absent", "no_such_module_anywhere", plugins.GROUP)])
    monkeypatch.setattr(plugins, "registry", lambda: registry)
    code, out, _ = modulate("plugins")
    assert code == 0
    assert "broken: ModuleNotFoundError: No module named 'no_such_module_anywhere'" in out


def with_command(name):
    module = types.ModuleType("made_up")

    @hookimpl
    def register_commands(cli):
        cli.command(name)(lambda: print("hello from a plugin"))

    module.register_commands = register_commands
    registry = plugins.Registry([])
    registry.add("extra", module)
    return registry


def test_a_plugin_adds_a_command():
    result = CliRunner().invoke(cli.build(with_command("wave")), ["wave"])
    assert result.output == "hello from a plugin\n"


def test_a_plugin_command_that_clashes_is_left_out_with_a_warning(capsys):
    registry = with_command("train")
    assert "hello" not in CliRunner().invoke(cli.build(registry), ["train", "--help"]).output
    assert (
        registry.plugins["extra"].error
        == "PluginError: command 'train' of plugin 'extra' clashes with one that exists; rename it."
    )
    assert "Warning: the commands of plugin 'extra' are left out." in capsys.readouterr().err


# --- recipes


def test_cat_prints_the_file_or_with_resolved_every_default(modulate):
    assert modulate("cat", "gazeqwen_tiny")[1] == recipe_paths()["gazeqwen_tiny"].read_text()
    assert (
        modulate("cat", "ablations/tabletop")[1] == sweep_paths()["ablations/tabletop"].read_text()
    )
    assert "label_smoothing: 0.0" in modulate("cat", "gazeqwen_tiny", "seed=7", "--resolved")[1]
    code, _, err = modulate("cat", "gazeqwen_tiny", "seed=7")
    assert code == 1 and "add --resolved" in err


def test_cp_copies_and_overwrites_only_with_force(modulate, tmp_path):
    assert modulate("cp", "gazeqwen_tiny", tmp_path)[0] == 0
    copy = tmp_path / "gazeqwen_tiny.yaml"
    assert copy.read_text() == recipe_paths()["gazeqwen_tiny"].read_text()
    code, _, err = modulate("cp", "gazeqwen_tiny", copy)
    assert code == 1
    assert err == f"Error: {copy} exists; name another file, or add --force to replace it.\n"
    assert modulate("cp", "gazeqwen_tiny", copy, "--force")[0] == 0


def test_the_schema_is_json(modulate):
    assert json.loads(modulate("recipe", "schema")[1])["title"] == "Recipe"
    assert json.loads(modulate("recipe", "schema", "--sweeps")[1])["title"] == "Sweep"


# --- errors


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["train", "gazeqwen_tny"],
            (
                "No recipe 'gazeqwen_tny': neither a file nor a shipped recipe. Did you mean"
                " 'gazeqwen_tiny'"
            ),
        ),
        (
            ["check", "gazeqwen_tiny", "modulator.name=gaze_resample"],
            "Unknown modulator 'gaze_resample'. Did you mean 'gaze_resampler'?",
        ),
        (
            ["train", "gazeqwen_tiny", "training.batchsize=1"],
            "training.batchsize: unknown key. Did you mean 'batch_size'?",
        ),
        (["train", "gazeqwen_tiny", "seed"], "Override 'seed' is not of the form key.sub=value."),
        (["eval", "no_such_folder"], "no_such_folder is not a run: recipe.yaml is missing."),
    ],
)
def test_errors_are_one_message_without_traceback(args, message, modulate, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _out, err = modulate(*args)
    assert code == 1 and err.startswith("Error: ") and message in err and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_other_exceptions_keep_their_traceback(monkeypatch):
    def fail():
        raise RuntimeError("a bug")

    monkeypatch.setattr("modulate.config.recipe.recipe_paths", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["ls"])


# --- from train to ask


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a small world and a run trained on it for a few steps."""
    folder = tmp_path_factory.mktemp("cli")
    args = [
        "train",
        SMALL,
        f"data.params.root={folder}/world",
        "--runs",
        str(folder / "runs"),
        "--cache",
        str(folder / "cache"),
    ]
    return folder, CliRunner().invoke(cli.build(), args)


def test_train_prints_a_table_and_then_the_run(work):
    folder, result = work
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
    cached = len(list((folder / "cache").glob("*.safetensors")))
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
    folder, _ = work
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
    folder, _ = work
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


def test_eval_reproduces_the_metrics_exactly(work, modulate):
    folder, _ = work
    run = folder / "runs" / "small"
    before = (run / "metrics.json").read_bytes(), (run / "predictions.jsonl").read_bytes()
    code, out, _ = modulate("eval", run, "--cache", folder / "cache")
    assert code == 0 and out.splitlines()[-1] == f"Run: {run}"
    assert ((run / "metrics.json").read_bytes(), (run / "predictions.jsonl").read_bytes()) == before


def test_check_prints_figures_and_findings(work, modulate):
    folder, _ = work
    world = [f"data.params.root={folder}/world", "--cache", folder / "cache"]
    code, out, _ = modulate("check", SMALL, *world)
    assert code == 0 and "layers that reach the answer" in out and out.endswith("No errors.\n")
    code, out, _ = modulate("check", SMALL, "injection.layers=[5]", *world)
    assert code == 1
    assert "error: Injection into layer 5 cannot change the answer" in out
    assert out.endswith("1 error.\n")


@pytest.fixture
def ask(work, modulate):
    folder, _ = work
    video = sorted((folder / "world" / "videos").rglob("*.mp4"))[0]
    gaze = folder / "world" / "fixations" / f"{video.stem}_fixation_filtered.csv"

    def ask(
        *more,
        at="6",
        signal=f"gaze={gaze}",
        options=("a red cup", "a blue ball"),
        source=("--run", folder / "runs" / "small"),
    ):
        chosen = [part for option in options for part in ("--option", option)]
        return modulate(
            "ask",
            video,
            "--signal",
            signal,
            "--at",
            at,
            "--question",
            "What is it?",
            *chosen,
            *source,
            "--cache",
            folder / "cache",
            *more,
        )

    return ask


def test_ask_shows_answers_with_and_without_the_signal(ask):
    code, out, _ = ask()
    assert code == 0 and "a red cup" in out and "The signal reached" in out and "‖Δh‖/‖h‖" in out
    answers = json.loads(ask("--json")[1])
    assert [a["condition"] for a in answers] == ["signal", "none", "host"]
    assert all(sum(a["probabilities"]) == pytest.approx(1) for a in answers)
    assert answers[0]["tokens"] > 0
    assert answers[0]["ratio"]
    assert answers[1]["tokens"] == 0
    assert not answers[1]["ratio"]


def test_ask_takes_a_modulation_with_a_recipe(ask, work):
    run = work[0] / "runs" / "small"
    by_run = ask("--json")[1]
    assert (
        ask("--json", source=("--modulation", run / "modulation", "--recipe", run / "recipe.yaml"))[
            1
        ]
        == by_run
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(at="600"), "The question at 600 s lies outside"),
        (dict(at="-1"), "The question at -1 s lies outside"),
        (
            dict(options=("a red cup",)),
            "A question needs 2 to 8 different, non-empty options; got ['a red cup'].",
        ),
        (dict(options=("x", "x")), "different, non-empty options; got ['x', 'x']."),
        (dict(signal="gaze"), "Signal 'gaze' is not of the form kind=file"),
        (dict(signal="gaze=none.csv"), "The signal file none.csv does not exist."),
        (dict(signal=f"gase={__file__}"), "does not read the signal 'gase'. Did you mean 'gaze'?"),
        (dict(signal=f"gaze={__file__}"), "the header"),
        (
            dict(source=()),
            "No model is named. Give either --run RUN, or --modulation DIR together with"
            " --recipe RECIPE.",
        ),
    ],
)
def test_ask_refuses_invalid_questions(change, message, ask):
    code, _, err = ask(**change)
    assert code == 1 and message in err and "Traceback" not in err
