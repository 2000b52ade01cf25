"""The pages agree with the code: links, hooks, axis names, error messages, examples; and the code keeps the rules that the pages state."""

import ast
import inspect
import re
import tomllib
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from modulate import hookspecs
from modulate.errors import ModulateError

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
CORE = sorted((ROOT / "modulate").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))
SHIPPED = {p.name for p in (ROOT / "plugins").iterdir() if p.is_dir() and not p.name.startswith(("_", "."))}

name_of = lambda path: path.relative_to(ROOT).as_posix()


def blocks(page, language="python"):
    return [text for found, text in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.S | re.M) if found == language]


def imports(tree):
    """Yield (module, names, whether at module level) of every import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, [], node in tree.body
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module, [alias.name for alias in node.names], node in tree.body


# --- pages ------------------------------------------------------------------------------------------------------------------------------


def anchor(heading):
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.S | re.M)
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, fragment = link.partition("#")
        target = page.parent / file if file else page
        if file.startswith(("http://", "https://")):
            continue
        if not target.exists() or (fragment and fragment not in map(anchor, re.findall(r"^#+ (.*)$", target.read_text(), re.M))):
            dead.append(link)
    assert not dead


def test_the_index_reaches_every_page():
    seen, todo = set(), [DOCS / "index.md"]
    while todo:
        page = todo.pop()
        if page.suffix == ".md" and page not in seen:
            seen.add(page)
            todo += [(page.parent / link).resolve() for link in re.findall(r"\]\(([^)\s#:]+)", page.read_text()) if (page.parent / link).is_file()]
    assert not {name_of(p) for p in DOCS.rglob("*.md")} - {name_of(p) for p in seen}


def test_every_hook_is_documented_with_its_exact_signature():
    specs = {n: f for n, f in vars(hookspecs).items() if inspect.isfunction(f) and hasattr(f, "modulate_spec")}
    documented = {}
    for block in blocks(DOCS / "reference" / "hooks.md"):
        exec(block, {"Register": hookspecs.Register}, documented)
    assert specs and documented.keys() == specs.keys()
    assert not [n for n in specs if inspect.signature(documented[n]) != inspect.signature(specs[n])]


SHAPED = {"Float", "Float32", "Float64", "Bool", "Int", "Int32", "Int64", "UInt8", "Num", "Real", "Shaped", "Integer"}


def test_every_axis_name_is_explained():
    used = set()
    for path in CORE + PLUGINS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in SHAPED:
                assert isinstance(node.slice, ast.Tuple) and isinstance(node.slice.elts[1], ast.Constant), ast.unparse(node)
                used |= set(re.findall(r"[a-z_]+", node.slice.elts[1].value))
    rows = re.findall(r"^\| (`.*?) \|", (DOCS / "reference" / "axes.md").read_text(), re.M)
    explained = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert not used - explained, "explain these in docs/reference/axes.md"
    assert not explained - used - {"d_model"}, "no signature uses these"


def test_every_message_on_the_errors_page_is_in_the_source():
    source = "".join(p.read_text() for p in CORE + PLUGINS)
    quoted = re.findall(r"^### `(.*)`$", (DOCS / "errors.md").read_text(), re.M)
    assert len(quoted) > 30 and len(quoted) == len(set(quoted))
    assert not [text for text in quoted if text not in source]


def requirement(text):
    return re.match(r"[\w.-]+", text)[0].lower().replace("_", "-")


def test_dependencies_are_exactly_those_explained():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    always, extras = (DOCS / "explanation" / "dependencies.md").read_text().split("## Extras")
    named = {requirement(name) for name in re.findall(r"^\| ([\w-]+) \|", always, re.M) if name not in ("package", "---")}
    assert named == {requirement(d) for d in project["dependencies"]}
    found = {}
    for extra, packages in re.findall(r"^\| `(\w+)` \| (.*?) \|", extras, re.M):
        found.setdefault(extra, set()).update(requirement(p) for p in packages.split(", "))
    assert found == {extra: {requirement(d) for d in wanted} for extra, wanted in project["optional-dependencies"].items()}


# --- examples ---------------------------------------------------------------------------------------------------------------------------


def test_the_tutorial_shows_the_files_that_are_installed():
    page = DOCS / "tutorial" / "write-a-signal-encoder.md"
    shown = re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)^```$", page.read_text(), re.S | re.M)
    files = {p.relative_to(page.parent).as_posix() for p in page.parent.rglob("*") if p.suffix in (".py", ".toml") and "build" not in p.parts}
    assert {name for name, _ in shown} == files
    assert not [name for name, text in shown if text != (page.parent / name).read_text()]


def test_the_backbone_of_the_how_to_works():
    names = {}
    for block in blocks(DOCS / "how-to" / "add-a-backbone.md"):
        exec(block, names)
    backbone = names["MeanColour"](names["MeanColourParams"](rows=2, cols=3))
    frames = torch.zeros(4, 8, 9, 3, dtype=torch.uint8)
    frames[1:, :4, :3] = 255
    features = backbone(frames, (0.0, 0.5, 1.0, 2.0))
    assert features.values.shape == (4, 2, 3, backbone.d_features) and features.times == (0.0, 0.5, 1.0, 2.0)
    assert features.values[1, 0, 0].eq(1).all() and not features.values[0].any()
    registered = {}
    names["register_backbones"](registered.__setitem__)
    assert registered == {"mean_colour": "my_package.backbone:MeanColour"}


@pytest.fixture
def application(tmp_path, monkeypatch):
    """What the reader of the how-to has: a loaded model, a clip, its fixations, a modulation."""
    from modulate import Host, Modulation
    from modulate.choice import Choice
    from modulate.hosts import HostParams

    monkeypatch.chdir(tmp_path)
    with av.open("clip.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=2)
        stream.width = stream.height = 64
        for i in range(26):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), 9 * i, np.uint8))))
        container.mux(stream.encode())
    Path("clip_fixation_filtered.csv").write_text("start_time,end_time,center_x,center_y\n5.0,10.5,0.2,0.7\n")
    model, processor = Host.load(HostParams(path="package:modulate_tabletop/host"))
    dims = {"dim": 48, "depth": 1, "heads": 3}
    Modulation.for_host(
        model, encoder=Choice(name="coord_rel", params={"dim": 16}), modulator=Choice(name="gaze_resampler", params={"width": 16}),
        backbone=Choice(name="vjepa2_1", params={"weights": "random", "dims": dims, "image_size": 64}), layers=[1], d_features=48,
    ).save_pretrained("runs/gazeqwen_tiny/modulation")  # fmt: skip
    return {"model": model, "processor": processor, "modulation": Modulation.from_pretrained("runs/gazeqwen_tiny/modulation")}


def test_the_how_to_for_ones_own_model_works(application, capsys):
    names = application
    for block in blocks(DOCS / "how-to" / "use-your-own-model.md"):
        exec(block, names)
        if "prompt" in names:
            names.setdefault("inputs", names["prompt"].inputs)  # the reader who makes them alone
    report = names["attachment"].report()
    assert names["grid"] == names["prompt"].grid
    assert report.tokens == names["grid"].tokens and report.active_steps == (names["grid"].steps,)
    assert "Report(" in capsys.readouterr().out


# --- rules ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_the_core_imports_no_plugin(path):
    found = [module for module, _, _ in imports(ast.parse(path.read_text())) if module.partition(".")[0] in SHIPPED]
    assert not found


def rows():
    text = (DOCS / "explanation" / "architecture.md").read_text()
    return {name: int(row) for row, cell in re.findall(r"^\| (\d+) \| (.*) \|$", text, re.M) for name in re.findall(r"(?:^| · )`(\w+)`", cell)}


def test_the_architecture_page_names_every_module():
    there = {p.stem for p in (ROOT / "modulate").glob("*.py") if not p.stem.startswith("_")} | {"cli"}
    assert rows().keys() == there


@pytest.mark.parametrize("path", [p for p in CORE if p.parent.name == "modulate" and not p.stem.startswith("_")], ids=name_of)
def test_modules_import_only_from_rows_above_their_own(path):
    row = rows()
    wrong = []
    for module, names, top in imports(ast.parse(path.read_text())):
        used = names if module == "modulate" else [module.split(".")[1]] if module.startswith("modulate.") else []
        wrong += [name for name in used if name in row and row[name] >= row[path.stem] and (path.stem, name, top) != ("modulation", "inject", False)]
    assert not wrong


@pytest.mark.parametrize("path", PLUGINS, ids=name_of)
def test_plugins_use_public_names_only(path):
    own = path.relative_to(ROOT / "plugins").parts[0]
    private = []
    for module, names, _ in imports(ast.parse(path.read_text())):
        package, *parts = module.split(".")
        if package != own and (package == "modulate" or package in SHIPPED):
            private += [f"{module}: {name}" for name in [*parts, *names] if name.startswith("_") and not name.startswith("__")]
    assert not private


@pytest.mark.parametrize("path", CORE + PLUGINS, ids=name_of)
def test_modules_and_functions_stay_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    functions = (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    assert not [f.name for f in functions if f.end_lineno - f.lineno >= 60]


def test_every_deliberate_error_can_be_caught_as_a_builtin():
    for error in ModulateError.__subclasses__():
        assert [base for base in error.__mro__ if base.__module__ == "builtins" and base not in (Exception, BaseException, object)], error
