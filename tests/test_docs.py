"""The documentation and the code say the same; imports run one way; modules stay small."""

import ast
import graphlib
import inspect
import re
import tomllib

import pytest
import torch

from modulate import hookspecs, visual_grid
from modulate.cli import layout
from modulate.config.recipe import load_recipe
from modulate.data.alignment import align
from tests.paths import ROOT
from tests.tiny import GRID, features, inputs, scanpath

DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CHANGELOG.md"])
CORE = sorted((ROOT / "modulate").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))
RECIPES = "modulate_recipes"

UPWARDS = {("modulation.module", "modulation.attachment")}
"""Imports that close a circle, made inside a function: `modulation.attach(host)` needs the
attachment, which needs the modulation."""


def parse(path):
    return ast.parse(path.read_text())


def imported(tree):
    """Every (module, name) imported anywhere in a file; name is None for plain imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from ((node.module, alias.name) for alias in node.names)


def dotted(path):
    """The module inside the core: `modulate/cli/output.py` → cli.output."""
    return ".".join(path.relative_to(ROOT / "modulate").with_suffix("").parts)


CORE_MODULES = {dotted(path).removesuffix(".__init__") for path in CORE}


def targets(path):
    """Modules of the core that a file imports, as `cli.output`."""
    for module, name in imported(parse(path)):
        if module.split(".")[0] != "modulate":
            continue
        inside = module.partition(".")[2]
        whole = f"{inside}.{name}".strip(".") if name else inside
        found = whole if whole in CORE_MODULES else inside
        if found:
            yield found


# --- pages


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_relative_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    links = [
        link
        for link in re.findall(r"\]\(([^)\s]+)\)", text)
        if "://" not in link and not link.startswith("#")
    ]
    assert [link for link in links if not (page.parent / link.partition("#")[0]).exists()] == []


def test_the_index_reaches_every_page():
    linked = {
        (DOCS / link).resolve()
        for link in re.findall(r"\]\(([^)\s]+)\)", (DOCS / "index.md").read_text())
    }
    pages = [
        path
        for folder in ("tutorial", "how-to", "reference", "explanation")
        for path in (DOCS / folder).glob("*.md")
    ]
    assert pages and [page.name for page in pages if page.resolve() not in linked] == []


def test_every_hook_is_documented_with_its_exact_signature():
    hooks = {
        name: function
        for name, function in vars(hookspecs).items()
        if hasattr(function, "modulate_spec")
    }
    signatures = [
        name + str(inspect.signature(function)).replace("collections.abc.", "")
        for name, function in hooks.items()
    ]
    assert (
        signatures
        and re.findall(r"^## `(.+)`$", (DOCS / "reference" / "hooks.md").read_text(), re.M)
        == signatures
    )


def axes_of(path):
    """Axis names in a file's jaxtyping annotations."""
    for node in ast.walk(parse(path)):
        if (
            isinstance(node, ast.Subscript)
            and isinstance(node.value, ast.Name)
            and isinstance(node.slice, ast.Tuple)
            and len(node.slice.elts) == 2
        ):
            shape = node.slice.elts[1]
            if (
                re.fullmatch(r"(Float|Int|UInt|Bool|Shaped|Num)\d*", node.value.id)
                and isinstance(shape, ast.Constant)
                and isinstance(shape.value, str)
            ):
                yield from shape.value.split()


def test_every_axis_name_is_explained():
    explained = set(re.findall(r"`([^`\s]+)`", (DOCS / "reference" / "axes.md").read_text()))
    used = {
        axis: path.name
        for path in [*CORE, *PLUGINS]
        for axis in axes_of(path)
        if not axis.isdigit()
    }
    assert used and {axis: file for axis, file in used.items() if axis not in explained} == {}


def messages():
    """All text constants of the sources, f-strings with a gap for what varies."""
    for path in [*CORE, *PLUGINS]:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.JoinedStr):
                yield "".join(
                    part.value if isinstance(part, ast.Constant) else "\0" for part in node.values
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_every_message_on_the_errors_page_occurs_in_the_sources():
    rows = re.findall(r"^\| (?:`` ?(.+?) ?``|`([^`]+)`) \|", (DOCS / "errors.md").read_text(), re.M)
    quoted = [double or single for double, single in rows]
    source = "\n".join(messages())
    assert len(quoted) > 20 and [text for text in quoted if text not in source] == []


def test_the_dependencies_page_names_what_pyproject_names():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bare = lambda requirement: re.match(r"[\w.-]+", requirement)[0]
    always, extras = (DOCS / "explanation" / "dependencies.md").read_text().split("## Extras")
    assert re.findall(r"^\| ([\w.-]+) \| [^-]", always, re.M)[1:] == [
        bare(requirement) for requirement in project["dependencies"]
    ]
    named = {}
    for extra, packages in re.findall(r"^\| `([\w-]+)` \| ([^|]+) \|", extras, re.M):
        named.setdefault(extra, set()).update(packages.replace(" ", "").split(","))
    assert named == {
        extra: {bare(requirement) for requirement in rs}
        for extra, rs in project["optional-dependencies"].items()
    }


# --- examples


def test_the_tutorial_shows_the_files_that_are_installed():
    page = DOCS / "tutorial" / "write-a-signal-encoder.md"
    shown = re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)^```$", page.read_text(), re.S | re.M)
    package = page.parent / "modulate-pointer"
    files = {
        path.relative_to(page.parent).as_posix()
        for path in [package / "pyproject.toml", *(package / "modulate_pointer").glob("*.py")]
    }
    assert sorted(name for name, _ in shown) == sorted(files)
    assert [name for name, text in shown if text != (page.parent / name).read_text()] == []


def test_the_how_to_for_ones_own_model_works(host):
    names = {
        "host": host,
        "inputs": inputs(texts=((7,),)),
        "features": features(),
        "scanpath": scanpath(),
    }
    names |= {"frame_times": [0.0, 1.0, 2.0, 3.0], "rows": GRID.rows, "cols": GRID.cols}
    (code,) = re.findall(
        r"```python\n(.*?)```", (DOCS / "how-to" / "use-your-own-model.md").read_text(), re.S
    )
    exec(compile(code, "use-your-own-model.md", "exec", dont_inherit=True), names)
    assert names["grid"] == GRID and names["attachment"].report().tokens == GRID.tokens
    assert torch.equal(
        names["logits"], host(**names["inputs"]).logits
    )  # a fresh modulation changes nothing


@pytest.mark.parametrize("base", ["gazeqwen", "gazeqwen_released", "gazeqwen_plus"])
def test_the_miniature_of_the_reproduction_page_stands_on_each_recipe(base, tmp_path):
    ((name, text),) = re.findall(
        r"<!-- file: (\S+) -->\n```yaml\n(.*?)^```$",
        (DOCS / "how-to" / "reproduce-gazeqwen.md").read_text(),
        re.S | re.M,
    )
    (tmp_path / name).write_text(text.replace("extends: gazeqwen ", f"extends: {base} "))
    recipe = load_recipe(str(tmp_path / name))
    assert (
        recipe.host.params["path"] == "package:modulate_tabletop/host"
        and recipe.encoder == load_recipe(base).encoder
    )


def test_the_backbone_of_the_how_to_works():
    code = re.findall(
        r"```python\n(.*?)```", (DOCS / "how-to" / "add-a-backbone.md").read_text(), re.S
    )[0]
    names = {"__name__": "how_to"}
    exec(compile(code, "add-a-backbone.md", "exec", dont_inherit=True), names)
    backbone = names["MeanColor"](names["MeanColorParams"](grid=4))
    found = backbone(torch.randint(0, 256, (4, 20, 30, 3), dtype=torch.uint8), (0.0, 0.5, 1.5, 2.0))
    grid = visual_grid([0.0, 0.5, 1.5, 2.0], 2, 2, 3)
    assert align(found, grid).shape == (2, 6, backbone.d_features) and backbone.fingerprint()


# --- code


def test_every_part_of_the_core_has_its_place_in_the_order():
    own = {dotted(path).split(".")[0] for path in CORE} - {"__init__", "__main__"}
    assert sorted(layout.order()) == sorted(own)
    assert [part.name for part in layout.parts() if not part.summary] == []


def test_summaries_of_packages_fit_a_line():
    assert {part.name: part.summary for part in layout.parts() if len(part.summary) > 80} == {}


def test_packages_import_downwards_only():
    level = {name: index for index, name in enumerate(layout.order())}
    wrong = set()
    for path in CORE:
        package = dotted(path).split(".")[0]
        if package not in level:
            continue
        others = {target.split(".")[0] for target in targets(path)} - {package}
        wrong |= {(dotted(path), other) for other in others if level[other] > level[package]}
    assert wrong == set()


def test_modules_have_no_circle():
    graph = {dotted(path): set(targets(path)) - {dotted(path)} for path in CORE}
    for importer, target in UPWARDS:
        graph[importer].remove(target)
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


def test_imports_that_close_a_circle_are_made_inside_functions():
    for importer, target in UPWARDS:
        body = parse(ROOT / "modulate" / f"{importer.replace('.', '/')}.py").body
        imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not [node for node in imports if f"modulate.{target}" in ast.unparse(node)]


def test_packages_export_nothing():
    """Importing one module runs no other: an `__init__` holds a docstring alone."""
    full = {"cli/__init__.py", "__init__.py"}
    packages = [path for path in CORE if path.name == "__init__.py"]
    names = {
        path.relative_to(ROOT / "modulate").as_posix(): len(parse(path).body) for path in packages
    }
    assert {name for name, length in names.items() if length > 1} <= full


def test_every_module_of_the_core_has_its_test_file():
    modules = [path for path in CORE if path.name not in {"__init__.py", "__main__.py"}]
    files = {
        path: path.relative_to(ROOT / "modulate").with_name(f"test_{path.name}") for path in modules
    }
    assert [str(file) for file in files.values() if not (ROOT / "tests" / file).exists()] == []


def test_the_core_names_no_plugin_package():
    named = {}
    for path in CORE:
        tree = parse(path)
        strings = [
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        packages = [module for module, _ in imported(tree)] + [
            string for string in strings if re.fullmatch(r"modulate_\w+(\.\w+)*(:\w+)?", string)
        ]
        named |= {name: path.name for name in packages if name.startswith("modulate_")}
    assert set(named) <= {RECIPES}, named


def test_plugins_import_no_private_names_of_others():
    wrong = []
    for path in PLUGINS:
        own = path.relative_to(ROOT / "plugins").parts[0]
        for module, name in imported(parse(path)):
            parts = [*module.split("."), name or ""]
            if (
                parts[0].startswith("modulate")
                and parts[0] != own
                and any(part.startswith("_") and not part.startswith("__") for part in parts)
            ):
                wrong.append((path.name, module, name))
    assert wrong == []


def test_no_folder_of_the_core_has_many_files():
    folders = {path.parent for path in CORE}
    counts = {folder.name: len(list(folder.glob("*.py"))) for folder in folders}
    assert {name: count for name, count in counts.items() if count > 16} == {}


def test_no_module_of_the_core_is_long():
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in CORE
    }
    assert {name: length for name, length in lengths.items() if length > 450} == {}


def body_length(function):
    """Lines of a function below its signature and docstring."""
    first, *rest = function.body
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    start = rest[0] if documented and rest else first
    return function.end_lineno - start.lineno + 1


def test_no_function_is_long():
    long = {}
    for path in [*CORE, *PLUGINS]:
        for node in ast.walk(parse(path)):
            if (
                isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                and (length := body_length(node)) > 60
            ):
                long[f"{path.relative_to(ROOT)}:{node.name}"] = length
    assert long == {}
