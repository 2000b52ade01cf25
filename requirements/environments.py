"""Lock the releases of the dependencies, and list newer and lowest supported ones.

Run by ``make``; needs only Python 3.11 with pip. ``lock`` writes lock.txt and lock-cuda.txt beside
this file, ``changes`` lists releases newer than those, and ``floors`` prints the lower bounds of
pyproject.toml as constraints.
"""

import datetime
import json
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LOCK = HERE / "lock.txt"
CUDA = HERE / "lock-cuda.txt"
EXTRAS = ("dev", "quantized")
"""Extras used by the test suite; others are not locked."""

SAME = 3
UNREACHABLE = 4
"""Exit codes of ``changes``: nothing is newer; the index did not answer."""

HEADS = {
    LOCK: (
        "Releases that this commit was verified with, as constraints for pip:"
        " docs/how-to/install.md"
    ),
    CUDA: "What torch's CUDA 13 build brings along: beside lock.txt, never instead of it",
}


def name_of(name: str) -> str:
    """Return a distribution's name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def for_cuda(name: str) -> bool:
    """Return whether only the CUDA build of torch needs this distribution."""
    return name_of(name).startswith(("nvidia-", "cuda-")) or name_of(name) == "triton"


def resolve(python: str) -> dict[str, str]:
    """Return {distribution: release} of the newest compatible releases.

    The pip of ``python`` resolves them as if nothing were installed. Local version labels (after a
    plus sign) are dropped. Raises :class:`subprocess.CalledProcessError` with pip's message.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        wanted = f"{ROOT}[{','.join(EXTRAS)}]"
        flags = ["--quiet", "--dry-run", "--ignore-installed", "--report", str(report)]
        command = [python, "-m", "pip", "install", *flags, "--editable", wanted]
        subprocess.run(command, check=True, capture_output=True, text=True)
        metadata = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    return {
        item["name"]: item["version"].partition("+")[0]
        for item in metadata
        if item["name"] != "modulate"
    }


def lock() -> int:
    """Resolve all dependencies in a fresh environment, and write the constraint files."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / ("Scripts" if sys.platform == "win32" else "bin") / "python")
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--upgrade", "pip"], check=True)
        pip = subprocess.run(
            [python, "-m", "pip", "--version"], check=True, capture_output=True, text=True
        )
        releases = resolve(python) | {"pip": pip.stdout.split()[1]}
    today = datetime.datetime.now(datetime.UTC).date()
    machine = f"{platform.system()} {platform.machine()}"
    made = (
        f"made by `make lock` on {today} with Python {platform.python_version()}, pip"
        f" {releases['pip']}, {machine}"
    )
    for path, head in HEADS.items():
        chosen = [name for name in releases if for_cuda(name) == (path == CUDA)]
        names = sorted(chosen, key=name_of)
        lines = [f"# {head}.", f"# Do not edit: {made}."]
        lines += [f"{name}=={releases[name]}" for name in names]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {len(names)} releases")
    return 0


def locked() -> dict[str, str]:
    """Return {normalized name: release} of both constraint files."""
    lines = [
        line for path in (LOCK, CUDA) for line in path.read_text(encoding="utf-8").splitlines()
    ]
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name_of(name): release for name, release in pairs}


def changes() -> int:
    """Print newer releases than those of the lock; return :data:`SAME` if there are none."""
    try:
        newest = {name_of(name): release for name, release in resolve(sys.executable).items()}
    except subprocess.CalledProcessError as error:
        print(error.stderr.strip()[-2000:], file=sys.stderr)
        return 1 if "ResolutionImpossible" in error.stderr else UNREACHABLE
    # pip itself is locked, but is no dependency that pip would resolve.
    before = {name: release for name, release in locked().items() if name != "pip"}
    changed = [name for name in sorted(before | newest) if before.get(name) != newest.get(name)]
    for name in changed:
        old = before.get(name, "not there")
        new = newest.get(name, "not there")
        print(f"{name}: {old} in the lock, newest {new}")
    return 0 if changed else SAME


def floors() -> dict[str, str]:
    """Return {normalized name: lowest release} that pyproject.toml allows.

    Raises :class:`SystemExit` for a dependency without a lower bound.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = list(project["dependencies"])
    for extra in EXTRAS:
        wanted += project["optional-dependencies"][extra]
    lowest: dict[str, str] = {}
    order = lambda release: [int(part) for part in release.split(".")]
    for requirement in wanted:
        matched = re.fullmatch(r"([\w.-]+)>=([\d.]+)", requirement)
        if matched is None:
            raise SystemExit(
                f"pyproject.toml: {requirement!r} names no lowest release; write name>=release."
            )
        name = name_of(matched[1])
        release = matched[2]
        lowest[name] = max(lowest.get(name, "0"), release, key=order)
    return lowest


def main(args: list[str]) -> int:
    """Run a command and return its exit code."""
    if args == ["floors"]:
        print("\n".join(f"{name}=={release}" for name, release in sorted(floors().items())))
        return 0
    if args not in (["lock"], ["changes"]):
        raise SystemExit("usage: python requirements/environments.py lock | changes | floors")
    return lock() if args == ["lock"] else changes()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
