"""Find the quick tests that run a line of the core, by tracing them; nearest tests first."""

import ast
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from benchmarks.mutants import child
from benchmarks.mutants.operators import Mutant

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "build" / "mutants"
CORE = "modulate"
QUICK = "not slow and not gpu and not network"
MOST_S = 20.0
"""Largest traced duration, s, of the tests of one nearness for a mutant."""


@dataclass
class Traced:
    """Durations and lines of a test file's passing tests, and lines that run before any test."""

    seconds: dict[str, float] = field(default_factory=dict)
    lines: dict[str, dict[str, set[int]]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


class TracedTests:
    """The quick tests and the lines they run; files are traced on first use, and cached."""

    def __init__(self, files: list[str] | None = None) -> None:
        """Use the test files ``files``; by default all."""
        found = sorted(
            path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py")
        )
        self.files = files or found
        self.imports = {file: _imports(ROOT / file) for file in self.files}
        self.users = _users()
        self._traced: dict[str, Traced] = {}

    def traced(self, file: str) -> Traced:
        """Return the trace of ``file``."""
        if file not in self._traced:
            kept = CACHE / f"{_digest(file)}.json"
            if not kept.exists():
                CACHE.mkdir(parents=True, exist_ok=True)
                print(f"tracing {file}", flush=True)
                kept.write_text(json.dumps(_trace(file)))
            self._traced[file] = _read(json.loads(kept.read_text()))
        return self._traced[file]

    def nearness(self, file: str, module: str) -> int:
        """Return 0 for the namesake of a module, 1 for a file that imports it, 2 for others.

        If no test file is near a module, files near the modules that import it count as near.
        """
        found = self._nearness(file, module)
        if found < 2 or any(self._nearness(other, module) < 2 for other in self.files):
            return found
        return (
            1 if any(self._nearness(file, user) < 2 for user in self.users.get(module, ())) else 2
        )

    def _nearness(self, file: str, module: str) -> int:
        name = module.rpartition(".")[2]
        if Path(file).stem.removeprefix("test_") == name:
            return 0
        return 1 if module in self.imports[file] else 2

    def running(self, mutant: Mutant) -> list[list[str]]:
        """Return the tests that run a mutant's lines, nearest first, then by the file's speed.

        Each nearness is limited to MOST_S.
        """
        module = module_of(mutant.path)
        rows = []
        for file in self.files:
            near = self.nearness(file, module)
            slowest = max(self.traced(file).seconds.values(), default=0.0)
            for test in self._running(file, mutant, near):
                rows.append((near, slowest, self.traced(file).seconds[test], file, test))
        groups: list[list[str]] = [[], [], []]
        spent = [0.0, 0.0, 0.0]
        opened = set[str]()
        for near, slowest, seconds, file, test in sorted(rows):
            # The first test of a file pays for shared fixtures; its slowest test stands for that.
            cost = seconds + (slowest if opened and file not in opened else 0.0)
            if opened and spent[near] + cost > MOST_S:
                continue
            opened.add(file)
            spent[near] += cost
            groups[near].append(test)
        return [group for group in groups if group]

    def expected_seconds(self, names: list[str]) -> float:
        """Return an upper bound of the tests' duration, plus each file's slowest test."""
        files = {name.partition("::")[0] for name in names}
        own = sum(self.traced(name.partition("::")[0]).seconds[name] for name in names)
        return own + sum(max(self.traced(file).seconds.values()) for file in files)

    def _running(self, file: str, mutant: Mutant, near: int) -> Iterator[str]:
        traced = self.traced(file)
        wanted = set(range(mutant.line, mutant.last + 1))
        before = traced.lines.get("", {}).get(mutant.path, set())
        everywhere = bool(before & wanted) if mutant.inside else near < 2
        for test in traced.seconds:
            lines = traced.lines.get(test, {}).get(mutant.path, set())
            if everywhere or lines & wanted:
                yield test


def module_of(path: str) -> str:
    """Return the dotted name of a module's file."""
    return ".".join(Path(path).with_suffix("").parts).removesuffix(".__init__")


def _users() -> dict[str, set[str]]:
    """Return {module of the core: modules that import it}."""
    users: dict[str, set[str]] = {}
    for path in (ROOT / CORE).rglob("*.py"):
        for name in _imports(path):
            users.setdefault(name, set()).add(module_of(path.relative_to(ROOT).as_posix()))
    return users


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _digest(file: str) -> str:
    """Return a hash of a test file, the tests' helpers and the core, for the cache's name."""
    helpers = [path for path in (ROOT / "tests").rglob("*.py") if not path.name.startswith("test_")]
    read = [ROOT / file, *sorted(helpers), *sorted((ROOT / CORE).rglob("*.py"))]
    whole = hashlib.sha256(file.encode())
    for path in read:
        whole.update(path.read_bytes())
    return whole.hexdigest()[:24]


def _read(kept: dict[str, Any]) -> Traced:
    lines = {
        test: {path: set(found) for path, found in of.items()} for test, of in kept["lines"].items()
    }
    return Traced(kept["seconds"], lines, kept["failed"])


def _trace(file: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "traced.json"
        code = child.run(lambda: _traced_run(file, Path(folder), out), seconds=3600)
        if not out.exists():
            raise SystemExit(f"{file} cannot be traced: its process ended with {code}.")
        return json.loads(out.read_text())


def _traced_run(file: str, folder: Path, out: Path) -> int:
    os.environ["LINES_OF"] = str(ROOT / CORE)
    plugin = LineRecorder(folder)
    code = child.tests([file, "-m", QUICK], plugin)
    plugin.switch("")
    out.write_text(
        json.dumps({"seconds": plugin.seconds, "failed": plugin.failed, "lines": plugin.lines()})
    )
    return code


class LineRecorder:
    """A pytest plugin that records the lines of each test separately."""

    def __init__(self, folder: Path) -> None:
        """Write the lines to files in ``folder``, one for each test."""
        self.folder = folder
        self.number: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []
        self.now = ""
        self.switch("")
        child.inside().trace()

    def switch(self, test: str) -> None:
        """Attribute lines to ``test`` from now on; "" stands for shared fixtures and imports."""
        self.now = test
        number = self.number.setdefault(test, len(self.number))
        os.environ["LINES_TO"] = str(self.folder / str(number))
        child.inside().SEEN.clear()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Attribute the lines to this test."""
        self.switch(item.nodeid)
        try:
            return (yield)
        finally:
            self.switch("")

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        """Attribute the lines of a shared fixture to all tests."""
        test = self.now
        if fixturedef.scope != "function":
            self.switch("")
        try:
            return (yield)
        finally:
            if self.now != test:
                self.switch(test)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record a test's duration, and whether it fails without a mutant."""
        if report.passed:
            self.seconds[report.nodeid] = round(
                self.seconds.get(report.nodeid, 0) + report.duration, 3
            )
        if report.failed:
            self.failed.append(report.nodeid)

    def lines(self) -> dict[str, dict[str, list[int]]]:
        """Return {test: {file of the core: lines}}; omits failing and skipped tests."""
        called = {
            test: seconds for test, seconds in self.seconds.items() if test not in self.failed
        }
        self.seconds = called
        found: dict[str, dict[str, list[int]]] = {}
        for test, number in self.number.items():
            path = self.folder / str(number)
            if path.exists() and (test in called or not test):
                of = found.setdefault(test, {})
                for line in sorted(set(path.read_text().splitlines())):
                    name, _, at = line.rpartition(":")
                    of.setdefault(Path(name).relative_to(ROOT).as_posix(), []).append(int(at))
        return found
