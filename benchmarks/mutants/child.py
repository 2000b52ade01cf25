"""Run tests in forked processes; the parent has imported the slow libraries once."""

import contextlib
import ctypes
import gc
import importlib.util
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]
INSIDE = Path(__file__).parent / "inside"
HEAVY = (
    "torch",
    "torchvision",
    "transformers",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "transformers.models.auto.modeling_auto",
    "peft",
    "accelerate",
    "timm",
    "av",
    "einops",
    "hypothesis",
    "jaxtyping",
    "beartype",
    "pydantic",
    "typer.testing",
    "rich",
    "huggingface_hub",
    "PIL.Image",
    "xml.dom",
    "multiprocessing.connection",
    "_hypothesis_pytestplugin",
    "torch.distributed",
    "torch.utils.data",
    "torch.utils.checkpoint",
)
PR_SET_CHILD_SUBREAPER = 36
"""Constant of linux/prctl.h."""

MEMORY = 12 * 2**30
"""Largest data segment of a process, bytes: an endless loop must not exhaust the machine."""


def preload() -> None:
    """Import the libraries that tests need and no mutant changes."""
    from _pytest.config import default_plugins

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for name in HEAVY:
        importlib.import_module(name)
    for name in default_plugins:
        importlib.import_module(f"_pytest.{name}")
    sys.modules["torch"].set_num_threads(1)
    assert not any(name.partition(".")[0] == "modulate" for name in sys.modules)
    gc.freeze()  # pytest collects garbage at its end and would scan all of this


def inside() -> ModuleType:
    """Return the module that runs first in every process of the tests."""
    name = "mutants_inside"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, INSIDE / "sitecustomize.py")
        assert spec and spec.loader
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def run(job: Callable[[], int], seconds: float) -> int | None:
    """Return the exit status of ``job`` in its own process, or None if it ran too long.

    Ends every process that it has started.
    """
    folder = tempfile.mkdtemp(prefix="mutants-")
    sys.stdout.flush()
    _adopt_orphans()
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            _apart(folder)
            status = int(job())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    with contextlib.suppress(OSError):
        os.setpgid(pid, pid)
    try:
        return _waited(pid, seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        _end_orphans()
        shutil.rmtree(folder, ignore_errors=True)


def _adopt_orphans() -> None:
    """Let processes below this one whose parent ends become its own children, whatever their group
    or session.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def _end_orphans() -> None:
    """End the remaining processes of a job, which a fault may have kept a test from ending."""
    while children := Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        for pid in map(int, children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _apart(folder: str) -> None:
    """Make this process the leader of a group: silent, with its own temporary folder and limits."""
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    if not os.environ.get("MUTANTS_LOUD"):
        silence = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(silence, descriptor)
    _adopt_orphans()  # so that guard() recognizes them as the test's
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["TMPDIR"] = folder
    tempfile.tempdir = folder
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(INSIDE), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    os.chdir(ROOT)


def _waited(pid: int, seconds: float) -> int | None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def tests(arguments: list[str], plugin: Any) -> int:
    """Run pytest in this process, with hypothesis derandomized and without shrinking."""
    import pytest
    from hypothesis import Phase, settings

    settings.register_profile(
        "mutants",
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),
    )
    settings.load_profile("mutants")
    options = [
        "-q",
        "-p",
        "no:xdist",
        "-p",
        "no:anyio",
        "--no-header",
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
        "--tb=no" if not os.environ.get("MUTANTS_LOUD") else "--tb=short",
    ]
    return int(pytest.main([*options, *arguments], plugins=[plugin]))


class Chosen:
    """A pytest plugin that runs only the given tests, in their order."""

    def __init__(self, names: list[str]) -> None:
        """Run the tests ``names``."""
        self.order = {name: place for place, name in enumerate(names)}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Select and sort the tests."""
        items[:] = sorted(
            (item for item in items if item.nodeid in self.order),
            key=lambda item: self.order[item.nodeid],
        )


def mutated(file: Path, source: bytes, names: list[str], seconds: float) -> int | None:
    """Return pytest's exit status for tests while ``file`` is imported as ``source``.

    None if they run longer than ``seconds``.
    """

    def job() -> int:
        held = Path(tempfile.gettempdir()) / "mutant.py"
        held.write_bytes(source)
        os.environ["MUTANT_FILE"] = str(file)
        os.environ["MUTANT_SOURCE"] = str(held)
        os.environ["MUTANT_ROOT"] = str(os.getpid())
        inside().mutate(str(file), str(held))
        inside().guard()
        files = sorted({name.partition("::")[0] for name in names})
        return tests(["-x", *files], Chosen(names))

    return run(job, seconds)
