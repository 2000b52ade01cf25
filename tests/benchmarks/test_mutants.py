"""Mutation testing: the mutants, equivalent mutants, isolation of processes, and the page."""

import ast
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from benchmarks.mutants import equivalents, page
from benchmarks.mutants.operators import mutants, sample
from benchmarks.mutants.tests import TracedTests
from tests.paths import ROOT


def all_mutants(tmp_path, text):
    """Return all mutants of a module as {(operator, text of the mutant)}."""
    (tmp_path / "m.py").write_text(text)
    source = text.encode()
    return {
        (mutant.operator, mutant.apply(source).decode()) for mutant in mutants(tmp_path, "m.py")
    }


@pytest.mark.parametrize(
    ("text", "operator", "changed"),
    [
        ("a < b", "comparison", {"a <= b", "a > b"}),
        ("a == b", "comparison", {"a != b"}),
        ("a not  in (b)", "comparison", {"a in (b)"}),
        ("x = a and b", "and, or", {"x = a or b"}),
        ("x = not (a or b)", "not", {"x =  (a or b)"}),
        ("x = (a) + (b)", "arithmetic", {"x = (a) - (b)"}),
        ("x = 3", "constant", {"x = 4", "x = 2"}),
        ("x = 0.5", "constant", {"x = 1.5"}),
        ("x = True", "constant", {"x = False"}),
        ("f(a, b)", "swapped arguments", {"f(b, a)"}),
        ("f(a, k=b)", "dropped keyword", {"f(a)"}),
        ("f(k=b, **c)", "dropped keyword", {"f(**c)"}),
        ("x = a[b:c]", "slice", {"x = a[:c]", "x = a[b:]"}),
        ("x = min(a, b)", "comparison", {"x = max(a, b)"}),
        ("def f(a=1): ...", "constant", {"def f(a=2): ...", "def f(a=0): ..."}),
        ("x = a if b else c", "not", {"x = a if (not (b)) else c"}),
    ],
)
def test_each_operator_makes_its_changes_and_touches_nothing_else(
    tmp_path, text, operator, changed
):
    assert {now for kind, now in all_mutants(tmp_path, text) if kind == operator} == changed


def test_statements_raises_and_return_values_are_removed(tmp_path):
    text = "def f(a):\n    a.b = c\n    a.d()\n    if a:\n        raise E(a < 1)\n    return a\n"
    found = {now for kind, now in all_mutants(tmp_path, text) if kind.startswith("removed")}
    gone = ["a.b = c", "a.d()", "raise E(a < 1)"]
    assert found == {text.replace(part, "pass") for part in gone} | {
        text.replace("return a", "return None")
    }


@pytest.mark.parametrize(
    "text",
    [
        '"""Words."""',
        "__all__ = [1, 2]",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    x = 1 < 2",
        "x: L[1] | None",
        "def f(a: B | C) -> D[1]: ...",
        "@dataclass(frozen=True)\nclass A: ...",
        "x = Field(description=1 + 2)",
        "assert a < b",
        "x = zip(a, strict=True)",
        'T = TypeVar("T", bound=int)',
    ],
)
def test_types_words_and_assertions_are_left_alone(tmp_path, text):
    assert {now for _, now in all_mutants(tmp_path, text)} <= {
        text.replace("Field(description=1 + 2)", "Field()")
    } - {text}


def test_the_boundary_of_a_comparison_with_a_tolerance_is_left_alone(tmp_path):
    assert {now for kind, now in all_mutants(tmp_path, "a < b - 1e-6") if kind == "comparison"} == {
        "a > b - 1e-6"
    }


def test_every_mutant_of_the_core_is_another_program_that_compiles_in_one_place(tmp_path):
    path = "modulate/interfaces/visual_grid.py"
    source = (ROOT / path).read_bytes()
    every = mutants(ROOT, path)
    assert len(every) > 100 and len({mutant.apply(source) for mutant in every}) == len(every)
    for mutant in every:
        assert ast.dump(ast.parse(mutant.apply(source))) != ast.dump(ast.parse(source))
        assert (
            mutant.line <= source[: mutant.start].count(b"\n") + 1 <= mutant.last
            and len(mutant.diff(source).splitlines()) >= 4
        )


def test_a_sample_depends_on_seed_and_module_alone():
    every = mutants(ROOT, "modulate/interfaces/visual_grid.py")
    first = sample(every, 20, 0)
    assert first == sample(every[::1], 20, 0) != sample(every, 20, 1) and len(set(first)) == 20
    assert sample(every, 10**6, 5) == every and sample([], 20, 0) == []


def test_every_change_listed_as_no_fault_is_a_mutant_of_the_core_and_has_its_reason():
    for entry in equivalents.listed():
        assert entry.keys() == {"module", "was", "now", "why"}
        assert len(entry["why"]) > 10
    assert equivalents.stale(ROOT) == []


def test_a_listed_change_that_the_module_no_longer_allows_is_reported(tmp_path, monkeypatch):
    (tmp_path / "m.py").write_text("x = a < b\n")
    monkeypatch.setattr(equivalents, "FILE", tmp_path / "list.toml")
    entry = (
        "[[equivalent]]\nmodule = 'm.py'\nwas = 'x = a < b'\nnow = '{}'\nwhy = 'a reason for it'\n"
    )
    equivalents.FILE.write_text(entry.format("x = a <= b") + entry.format("x = a == b"))
    assert [each["now"] for each in equivalents.stale(tmp_path)] == ["x = a == b"]
    every = mutants(tmp_path, "m.py")
    assert [mutant.text for mutant in equivalents.without_equivalents(every, b"x = a < b\n")] == [
        ">"
    ]


def test_a_fault_reaches_no_process_but_the_test_s_own():
    script = """
import os, subprocess, sys
os.environ["MUTANT_ROOT"] = str(os.getpid())
sys.path.insert(0, sys.argv[1])
import sitecustomize
sitecustomize.guard()
child = subprocess.Popen(["sleep", "60"], start_new_session=True)
os.kill(os.getppid(), 0)
os.killpg(child.pid, 9)
print(child.wait())
for send, target in ((os.kill, os.getppid()), (os.kill, 1), (os.killpg, os.getpgid(os.getppid()))):
    try:
        send(target, 18)
    except PermissionError as error:
        print(type(error).__name__)
"""
    inside = ROOT / "benchmarks" / "mutants" / "inside"
    done = subprocess.run(
        [sys.executable, "-S", "-c", script, inside],
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
    )
    assert done.stdout.split() == [
        "-9",
        "PermissionError",
        "PermissionError",
        "PermissionError",
    ], done.stderr


def test_a_module_without_tests_is_near_the_tests_of_modules_that_import_it():
    tests = TracedTests(
        [
            "tests/modulation/test_lora.py",
            "tests/modulation/test_recompute.py",
            "tests/hosts/test_kv_cache.py",
        ]
    )
    near = lambda module: [tests.nearness(file, module) for file in tests.files]
    assert near("modulate.modulation.lora") == [0, 2, 2]
    assert near("modulate.modulation.recompute") == [1, 0, 2]
    assert near("modulate.hosts.wrappers") == [1, 2, 2]  # modulate.modulation.lora imports it
    assert near("modulate.nowhere") == [2, 2, 2]


def test_nothing_that_a_job_started_outlives_it():
    script = """
import subprocess, sys, time
sys.path.insert(0, sys.argv[1])
from benchmarks.mutants import child
def job():
    command = ["/bin/sh", "-c", "sleep 60 & echo $!; exec sleep 60"]
    started = subprocess.Popen(
        command, stdout=subprocess.PIPE, start_new_session=True, text=True
    )
    with open(sys.argv[2], "w") as out:
        out.write(f"{started.pid} {started.stdout.readline()}")
    return 3
print(child.run(job, 30))
"""
    with tempfile.NamedTemporaryFile() as pids:
        done = subprocess.run(
            [sys.executable, "-S", "-c", script, ROOT, pids.name],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout.split() == ["3"], done.stderr
        assert [Path(f"/proc/{pid}").exists() for pid in Path(pids.name).read_text().split()] == [
            False,
            False,
        ]


def test_the_page_is_written_from_the_record():
    assert page.page() == page.PAGE.read_text()
    for row in page.rows():
        assert (
            row["tried"] == row["killed"] + len(row["survivors"])
            and row["too_long"] <= row["killed"]
        )
