"""The releases of our dependencies, at both ends: the lock, what is newer than it, and the oldest
that are supported.

Run by ``make``; needs nothing but Python 3.11 with pip. ``lock`` writes lock.txt and lock-cuda.txt
beside this file, ``changes`` prints what is newer than they say, ``floors`` prints the lower
bounds of pyproject.toml as constraints.
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
"""Extras that the test suite uses; the others are not locked."""

SAME = 3
UNREACHABLE = 4
"""Exit codes of ``changes``: nothing is newer; the index gave no answer."""

HEADS = {
    LOCK: (
        "Releases that this commit was verified with, as constraints for pip:"
        " docs/how-to/install.md"
    ),
    CUDA: "What torch's CUDA 13 build brings along: beside lock.txt, never instead of it",
}


def name_of(name: str) -> str:
    """Return a distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def for_cuda(name: str) -> bool:
    """Return whether only torch's CUDA build wants this distribution."""
    return name_of(name).startswith(("nvidia-", "cuda-")) or name_of(name) == "triton"


def resolve(python: str) -> dict[str, str]:
    """Return {distribution: release} of the newest releases that fit together, resolved by the pip
    of ``python`` as if nothing were installed. Releases are without what follows a plus sign.

    Raises :class:`subprocess.CalledProcessError` with pip's own words.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        wanted = f"{ROOT}[{','.join(EXTRAS)}]"
        flags = ["--quiet", "--dry-run", "--ignore-installed", "--report", str(report)]
        command = [python, "-m", "pip", "install", *flags, "--editable", wanted]
        subprocess.run(command, check=True, capture_output=True, text=True)
        found = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    return {
        item["name"]: item["version"].partition("+")[0]
        for item in found
        if item["name"] != "modulate"
    }


def lock() -> int:
    """Write the constraint files from a resolution in a fresh environment."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / ("Scripts" if sys.platform == "win32" else "bin") / "python")
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--upgrade", "pip"], check=True)
        pip = subprocess.run(
            [python, "-m", "pip", "--version"], check=True, capture_output=True, text=True
        )
        found = resolve(python) | {"pip": pip.stdout.split()[1]}
    today = datetime.datetime.now(datetime.UTC).date()
    machine = f"{platform.system()} {platform.machine()}"
    made = (
        f"made by `make lock` on {today} with Python {platform.python_version()}, pip"
        f" {found['pip']}, {machine}"
    )
    for path, head in HEADS.items():
        names = sorted((n for n in found if for_cuda(n) == (path == CUDA)), key=name_of)
        lines = [f"# {head}.", f"# Do not edit: {made}.", *(f"{n}=={found[n]}" for n in names)]
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
    """Print what the newest releases differ in from the lock; :data:`SAME` when in nothing."""
    try:
        newest = {name_of(name): release for name, release in resolve(sys.executable).items()}
    except subprocess.CalledProcessError as error:
        print(error.stderr.strip()[-2000:], file=sys.stderr)
        return 1 if "ResolutionImpossible" in error.stderr else UNREACHABLE
    before = {name: release for name, release in locked().items() if name != "pip"}
    differ = [name for name in sorted(before | newest) if before.get(name) != newest.get(name)]
    for name in differ:
        print(
            f"{name}: {before.get(name, 'not there')} in the lock, newest"
            f" {newest.get(name, 'not there')}"
        )
    return 0 if differ else SAME


def floors() -> dict[str, str]:
    """Return {normalized name: lowest release} that pyproject.toml allows.

    Raises :class:`SystemExit` for a dependency of which it names none.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(r for e in EXTRAS for r in project["optional-dependencies"][e]),
    ]
    found: dict[str, str] = {}
    order = lambda release: [int(part) for part in release.split(".")]
    for requirement in wanted:
        matched = re.fullmatch(r"([\w.-]+)>=([\d.]+)", requirement)
        if matched is None:
            raise SystemExit(
                f"pyproject.toml: {requirement!r} names no lowest release; write name>=release."
            )
        name = name_of(matched[1])
        release = matched[2]
        found[name] = max(found.get(name, "0"), release, key=order)
    return found


def main(args: list[str]) -> int:
    """Run the command named first."""
    if args == ["floors"]:
        print("\n".join(f"{name}=={release}" for name, release in sorted(floors().items())))
        return 0
    if args not in (["lock"], ["changes"]):
        raise SystemExit("usage: python requirements/environments.py lock | changes | floors")
    return lock() if args == ["lock"] else changes()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
