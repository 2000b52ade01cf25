"""The how-to pages for plugins, tried literally: every command, every file."""

import json
import re
import shlex
import sys

import pytest

from modulate import plugins
from modulate.cli import main
from tests.cli.test_new_package import install
from tests.paths import ROOT
from tests.processes import python
from tests.testing.shipped import FIXATIONS
from tests.video_files import write_video

PAGES = {
    name: ROOT / "docs/how-to" / f"{name}.md"
    for name in ("add-a-signal", "add-a-data-set", "add-an-input")
}


def files_of(name):
    """The files that a page shows, by name."""
    pattern = r"<!-- file: (\S+) -->\n```\w+\n(.*?)^```"
    return dict(re.findall(pattern, PAGES[name].read_text(), re.S | re.M))


def commands_of(name):
    """The commands of a page, in order."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGES[name].read_text(), re.S)
    return [line for block in blocks for line in block.splitlines()]


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """A folder in which the commands of all pages up to the tests have run, and where they import
    from.
    """
    folder = tmp_path_factory.mktemp("pages")
    site = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in PAGES:
            new, pip, *_ = commands_of(name)
            with pytest.raises(SystemExit) as ended:
                main(shlex.split(new)[1:])
            assert ended.value.code == 0
            (package,) = re.fullmatch(r"pip install --editable (\S+)", pip).groups()
            install(folder / package, site)
    return folder, site


@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_the_files_that_modulate_new_writes(name, tried):
    folder, _ = tried
    shown = {path: text for path, text in files_of(name).items() if path.startswith("modulate-")}
    assert len(shown) >= 2
    assert [path for path, text in shown.items() if (folder / path).read_text() != text] == []


def test_a_signal_and_its_encoder_take_60_lines():
    code = [text for path, text in files_of("add-a-signal").items() if "/modulate_pupil/" in path]
    lines = [line for text in code for line in text.splitlines() if line.strip()]
    assert len(code) == 3 and len(lines) <= 60


def test_the_tests_of_the_pages_pass(tried):
    folder, site = tried
    commands = [command for name in PAGES for command in commands_of(name) if "pytest" in command]
    packages = [command.removeprefix("python -m pytest ") for command in commands]
    assert len(packages) == 3
    code, out, err = python("-m", "pytest", "-q", *packages, cwd=folder, path=site)
    assert code == 0 and " passed" in out, out + err


@pytest.fixture
def run(tried, monkeypatch, capsys):
    """What a page does with its recipe, with its plugin installed: the output of all commands."""
    folder, site = tried
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delenv("MODULATE_PLUGINS", raising=False)
    found = plugins.registry.__wrapped__()
    monkeypatch.setattr(plugins, "registry", lambda: found)

    def run(name, *more):
        outputs = []
        for path, text in files_of(name).items():
            if not path.startswith("modulate-"):
                (folder / path).write_text(text)
        for command in commands_of(name):
            if command.startswith("modulate ") and not command.startswith("modulate new"):
                with pytest.raises(SystemExit) as ended:
                    main(shlex.split(command + more_of(command, more))[1:])
                out, err = capsys.readouterr()
                assert not ended.value.code, "\n".join([*re.findall("error: .*", out), err])
                outputs.append(out)
        return "".join(outputs)

    yield run
    for name in list(sys.modules):
        if re.match(r"modulate_(pupil|kitchens|last_look)\b", name):
            del sys.modules[name]


def more_of(command, more):
    """Overrides that make a page's recipe small."""
    return "".join(f" {text}" for text in more if not command.startswith("modulate data"))


def test_a_recipe_trains_on_the_new_signal(tried, run):
    folder, _ = tried
    (folder / "clips" / "pupil").mkdir(parents=True)
    for stem, value in (("one", 3.0), ("two", 4.0)):
        write_video(folder / "clips" / f"{stem}.mp4", seconds=value, size=(128, 96))
        rows = "".join(f"{seconds},{value}\n" for seconds in (0.5, 1.5, 2.5, 3.5))
        (folder / "clips" / "pupil" / f"{stem}.csv").write_text(f"seconds,value\n{rows}")
    out = run("add-a-signal")
    assert "pupil" in out
    saved = json.loads((folder / "runs/pupil/modulation/config.json").read_text())
    assert {"modulate", "modulate-pupil"} == {plugin["package"] for plugin in saved["plugins"]}
    (code,) = re.findall(
        r"```python\n(import modulate\n\nvqa.*?)```", PAGES["add-a-signal"].read_text(), re.S
    )
    names = {}
    exec(compile(code, "add-a-signal.md", "exec", dont_inherit=True), names)
    assert names["answer"].text in ("mug", "plate") and names["answer"].report


def test_the_new_data_set_is_checked(tried, run):
    folder, _ = tried
    entry = {"question": "what is it?", "options": ["mug", "plate"], "answer": 0}
    for number, place in enumerate(("train/a", "val/b", "test/c", "test/d")):
        path = folder / "kitchens" / f"{place}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        # Copies of one video would count as one.
        video = write_video(path, seconds=4.0 + 0.5 * number, size=(128, 96))
        video.with_suffix(".json").write_text(json.dumps(entry | {"window": [0.0, 4.0]}))
        video.with_suffix(".csv").write_text(FIXATIONS)
    out = run("add-a-data-set")
    assert "Samples: 1 train, 1 val, 2 test." in out


def test_the_new_input_is_a_condition(run):
    small = ("data.params.train=2", "data.params.val=1", "data.params.test=2")
    out = run("add-an-input", *small)
    assert out
