"""What untrusted recipes, checkpoints, datasets and hosts cannot do.

The threat model (docs/explanation/threat-model.md) names these tests.
"""

import ast
import pickle  # noqa: TID251  (to show what is refused)
import re
import sys
from pathlib import Path

import pytest

from modulate import cli
from modulate.config.recipe import load_recipe
from modulate.errors import DataError, HostError, MissingFileError, PluginError, RecipeError
from modulate.hosts.host import Host
from modulate.hosts.loading import HostParams
from modulate.inference.pipeline import Pipeline
from modulate.utils.paths import checked_name, resolve
from modulate_streamgaze.dataset import StreamGaze, StreamGazeParams
from tests.paths import ROOT, SMALL
from tests.tiny import qwen

SOURCES = sorted([*(ROOT / "modulate").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")])


# --- the sources

FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "shelve",
    "marshal",
    "joblib",
}
FORBIDDEN_CALLS = {
    "os.system",
    "os.popen",
    "yaml.load",
    "yaml.load_all",
    "yaml.unsafe_load",
    "yaml.full_load",
    "numpy.load",
    "np.load",
}


def offences(source):
    """Yield the forbidden constructs in a source, as text."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = {alias.name for alias in node.names} | (
                {node.module} if isinstance(node, ast.ImportFrom) else set()
            )
            yield from (
                f"import of {module}"
                for module in modules
                if module and module.split(".")[0] in FORBIDDEN_MODULES
            )
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called in FORBIDDEN_NAMES | FORBIDDEN_CALLS or called.split(".")[0] in FORBIDDEN_MODULES:
            yield called
        if called == "torch.load" and keywords.get("weights_only") != "True":
            yield "torch.load without weights_only=True"
        if (
            keywords.get("trust_remote_code") == "True"
            or keywords.get("shell") == "True"
            or keywords.get("allow_pickle") == "True"
        ):
            yield ast.unparse(node)
        if (
            re.fullmatch(r"Auto\w+\.from_pretrained", called)
            and "trust_remote_code" not in keywords
        ):
            yield f"{called} that does not say trust_remote_code"


def openings(source):
    """Yield calls of av.open that open a video for reading."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and re.fullmatch(
            r"(av|container|av\.container)\.open", ast.unparse(node.func)
        ):
            modes = [
                ast.unparse(value)
                for value in (
                    *node.args[1:2],
                    *(keyword.value for keyword in node.keywords if keyword.arg == "mode"),
                )
            ]
            if modes != ["'w'"]:
                yield ast.unparse(node)
        if (
            isinstance(node, ast.ImportFrom)
            and (node.module or "").split(".")[0] == "av"
            and "open" in {alias.name for alias in node.names}
        ):
            yield ast.unparse(node)


OTHER_READERS = {"cv2", "decord", "torchcodec", "imageio", "moviepy"}


def test_videos_are_opened_in_one_place():
    assert list(openings("av.open(p)"))
    assert list(openings("av.open(p, 'r')"))
    assert list(openings("from av import open"))
    assert not list(openings("av.open(p, 'w')"))
    calls_by_file = {
        path.relative_to(ROOT).as_posix(): calls
        for path in SOURCES
        if (calls := list(openings(path.read_text(encoding="utf-8"))))
    }
    assert calls_by_file.keys() == {"modulate/data/video_containers.py"}
    assert len(calls_by_file["modulate/data/video_containers.py"]) == 1
    imported = {
        path.name: {
            line.split()[1].split(".")[0]
            for line in path.read_text(encoding="utf-8").splitlines()
            if re.match(r" *(import|from) ", line)
        }
        for path in SOURCES
    }
    assert not {
        name: others for name, modules in imported.items() if (others := modules & OTHER_READERS)
    }


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "exec(text)",
        "import pickle",
        "from pickle import loads",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "yaml.load(t, Loader)",
        "f(trust_remote_code=True)",
        "os.system('x')",
        "subprocess.run(x, shell=True)",
        "np.load(p, allow_pickle=True)",
        "AutoModel.from_pretrained(p)",
    ],
)
def test_the_search_finds_what_it_looks_for(source):
    assert list(offences(source))


def test_no_source_could_run_foreign_code():
    assert len(SOURCES) > 50
    assert {
        f"{path.relative_to(ROOT)}: {text}"
        for path in SOURCES
        for text in offences(path.read_text())
    } == set()


def test_yaml_is_read_in_one_place():
    readers = {
        path.name
        for path in SOURCES
        if re.search(r"yaml\.(safe_load|SafeLoader|CSafeLoader|compose|parse)\b", path.read_text())
    }
    assert readers == {"safe_load.py"}


# --- recipes


def test_a_recipe_names_no_import_paths(monkeypatch):
    monkeypatch.delitem(sys.modules, "antigravity", raising=False)
    for name in ("antigravity:fly", "antigravity.fly", "os:system"):
        with pytest.raises(PluginError, match="Unknown signal_encoder"):
            load_recipe(SMALL, [f"encoder.name={name}"])
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("name", ["..", ".", "../x", "a/b", "/tmp/x", ".hidden", "", "a" * 101])
def test_the_name_of_a_recipe_is_a_plain_folder_name(name):
    with pytest.raises(RecipeError, match="name: String should"):
        load_recipe(SMALL, [f"name={name!r}"])


def test_a_long_chain_of_recipes_is_refused(tmp_path):
    for index in range(2000):
        (tmp_path / f"r{index}.yaml").write_text(f"extends: r{index + 1}.yaml\n")
    with pytest.raises(RecipeError, match=r"r0\.yaml extends a chain of more than 8 recipes"):
        load_recipe(str(tmp_path / "r0.yaml"))
    (tmp_path / "list.yaml").write_text("extends: [gazeqwen_tiny]\n")
    with pytest.raises(
        RecipeError,
        match=(
            r"list\.yaml: extends must be the name or file of one recipe,"
            r" got \['gazeqwen_tiny'\]"
        ),
    ):
        load_recipe(str(tmp_path / "list.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "encoder.params.x=" + "[" * 5000,
            "has a value that is refused in line 1: nested deeper than 24 levels",
        ),
        ("encoder.params." + "x." * 5000 + "y=1", "its key is nested deeper than 24 levels"),
        ("seed={a: 1, a: 2}", "the key 'a' appears twice"),
        ("seed=!!python/object/apply:os.system [echo]", "has a value that is not valid YAML"),
        ("seed=" + "9" * 100, "a number of more than 64 characters"),
    ],
)
def test_overrides_have_the_same_limits(text, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(SMALL, [text])


def test_a_recipe_of_many_bytes_gives_a_short_message(tmp_path):
    with pytest.raises(RecipeError) as caught:
        load_recipe(SMALL, ["seed=" + "x" * 200_000])
    assert len(str(caught.value)) < 1000
    (tmp_path / "r.yaml").write_text(
        "extends: gazeqwen_tiny\n" + "".join(f"unknown{index}: 1\n" for index in range(3000))
    )
    with pytest.raises(RecipeError, match=r"unknown11: unknown key.*\n  … and 2988 more\.$"):
        load_recipe(str(tmp_path / "r.yaml"))


# --- paths

ESCAPES = [
    "../v00.mp4",
    "/etc/passwd",
    "a/../../v00.mp4",
    "..",
    "C:\\videos\\v00.mp4",
    "\\\\server\\v00.mp4",
    "..\\v00.mp4",
    " /v00.mp4",
    "v\0.mp4",
    "./c:v.mp4",
]


@pytest.mark.parametrize("text", ESCAPES)
def test_a_name_in_a_data_file_never_leaves_its_folder(text):
    with pytest.raises(DataError, match=r"qa\.json, entry 3: .* leaves the data set's folder"):
        checked_name(text, "qa.json, entry 3")


def test_ordinary_names_are_kept():
    assert [
        checked_name(t, "q") for t in ("v00.mp4", "egtea/v00.mp4", "a\\b.mp4", "..v", "P01.R02", "")
    ] == [
        "v00.mp4",
        "egtea/v00.mp4",
        "a/b.mp4",
        "..v",
        "P01.R02",
        "",
    ]


def data_set(root, video="v00.mp4", split="gazeqwen"):
    (root / "qa").mkdir(parents=True, exist_ok=True)
    question = '{"question": "What?", "time_stamp": "00:05", "answer": "A", "options": ["x", "y"]}'
    text = (
        f'[{{"video_path": "v01.mp4", "questions": [{question}]}}, {{"video_path": {video!r},'
        f' "questions": [{question}]}}]'.replace("'", '"')
    )
    (root / "qa" / "past_scene_recall.json").write_text(text)
    return StreamGaze(StreamGazeParams(root=root, split=split, fixations=()))


def test_question_and_split_files_that_point_outside_are_refused_with_file_and_entry(tmp_path):
    for name in ("../outside/v00.mp4", "/videos/../../v00.mp4"):
        with pytest.raises(
            DataError,
            match=r"past_scene_recall\.json, entry 1: video_path: .* leaves the data set's folder",
        ):
            data_set(tmp_path, name).splits  # noqa: B018
    (tmp_path / "split.json").write_text('{"train": ["v01.mp4", "../v00.mp4"]}')
    with pytest.raises(
        DataError, match=r"split\.json, 'train': '\.\./v00\.mp4' leaves the data set's folder"
    ):
        data_set(tmp_path, split="split.json").splits  # noqa: B018


def test_only_the_last_name_of_a_foreign_absolute_path_counts(tmp_path):
    for name in ("/data/videos/v00.mp4", "C:/data/v00.mp4", "egtea/v00.mp4"):
        assert data_set(tmp_path, name).splits.keys() == {"v00", "v01"}


def test_a_link_that_the_user_put_into_the_folder_is_followed(tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    for stem in ("v00", "v01"):
        (store / f"{stem}.mp4").touch()
    real = tmp_path / "real"
    (real / "videos" / "original_video").mkdir(parents=True)
    for file in store.iterdir():
        (real / "videos" / "original_video" / file.name).symlink_to(file)
    (tmp_path / "root").symlink_to(real)
    files = data_set(tmp_path / "root").video_files
    assert {stem: path.resolve() for stem, path in files.items()} == {
        stem: store / f"{stem}.mp4" for stem in ("v00", "v01")
    }


def test_locating_a_package_runs_none_of_its_code(tmp_path, monkeypatch):
    inner = tmp_path / "nasty_package" / "inner"
    inner.mkdir(parents=True)
    for folder in (inner.parent, inner):
        (folder / "__init__.py").write_text("raise SystemExit('this must not run')\n")
    (inner / "file.txt").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert (
        resolve("package:nasty_package.inner/file.txt")
        == resolve("package:nasty_package/inner/file.txt")
        == inner / "file.txt"
    )
    assert not [name for name in sys.modules if name.startswith("nasty_package")]
    for text in (
        "package:nasty_package.inner/../../x",
        "package:../x",
        "package:nasty_package.../x",
    ):
        with pytest.raises(MissingFileError):
            resolve(text)


# --- models


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickled_host_is_not_read(tmp_path):
    marker = tmp_path / "ran"
    qwen(layers=1).config.save_pretrained(tmp_path / "host")
    (tmp_path / "host" / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(HostError, match=r"cannot be loaded: .*safetensors"):
        Host.load(HostParams(path=str(tmp_path / "host"), device="cpu"))
    assert not marker.exists()


@pytest.fixture
def hidden_code(tmp_path, monkeypatch):
    """A host folder with Python code of its own, and the file that the code creates if it runs."""
    marker = tmp_path / "ran"
    folder = tmp_path / "hidden_code_host"
    folder.mkdir()
    (folder / "config.json").write_text(
        '{"model_type": "hidden_code", "auto_map": {"AutoConfig": "hidden.Hidden",'
        ' "AutoModelForImageTextToText": "hidden.Model"}}'
    )
    code = [
        "import pathlib",
        "from transformers import PretrainedConfig",
        f"pathlib.Path({str(marker)!r}).touch()",
    ]
    code += [
        "class Hidden(PretrainedConfig):",
        "    model_type = 'hidden_code'",
        "class Model:",
        "    pass",
    ]
    (folder / "hidden.py").write_text("\n".join(code) + "\n")
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    return folder, marker


def test_code_that_comes_with_a_host_does_not_run_and_no_prompt_appears(hidden_code):
    folder, marker = hidden_code
    with pytest.raises(
        HostError, match=r"hidden_code_host' cannot be loaded: [^$]*trust_remote_code"
    ):
        Host.load(HostParams(path=str(folder)))
    assert not marker.exists()
    with pytest.raises(Exception):  # noqa: B017
        Host.load(HostParams(path=str(folder), trust_remote_code=True))
    assert marker.exists()


@pytest.mark.parametrize("command", ["train", "check"])
def test_a_recipe_alone_cannot_run_remote_code(command, hidden_code, capsys, monkeypatch, tmp_path):
    folder, marker = hidden_code
    monkeypatch.chdir(tmp_path)
    arguments = [command, SMALL, f"host.params.path={folder}", "host.params.trust_remote_code=true"]
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    out, err = capsys.readouterr()
    assert ended.value.code == 1 and not marker.exists()
    assert (
        "host.params of the recipe 'small' set trust_remote_code: Python files that come with the"
        " model would run" in out + err
    )
    with pytest.raises(SystemExit):
        cli.main([*arguments, "--trust-remote-code"])
    assert marker.exists()


def test_remote_code_needs_explicit_permission_from_python_too(tmp_path):
    recipe = load_recipe(SMALL, ["host.params.trust_remote_code=true"])
    with pytest.raises(RecipeError, match=r"Pipeline\(…, trust_remote_code=True\)"):
        Pipeline(recipe, tmp_path)


# --- the pages


def test_every_test_that_the_threat_model_names_exists():
    text = (ROOT / "docs" / "explanation" / "threat-model.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", text)
    assert len(named) > 15
    assert [
        (file, test) for file, test in named if f"def {test}(" not in (ROOT / file).read_text()
    ] == []
