"""Which library versions the hosts were verified with: by plugins' records, and on this machine.

A plugin that registers hosts may ship a ``verified.json`` beside its ``__init__.py``, written by
its suite, and a sub-package ``contract`` whose ``verify(family)`` yields (title,
:class:`RowResult`) for every quick row. Nothing here imports torch.
"""

import functools
import json
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from importlib import import_module
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import Field

from modulate import plugins
from modulate.errors import DataError, PluginError, UnverifiedWarning, shown
from modulate.utils.atomic_files import write_atomically
from modulate.utils.schema import Record, parse_record

CACHE_VARIABLE = "MODULATE_CACHE"
"""Environment variable: the folder of this machine's own record."""


SUITE = "python -m pytest tests/contract --write-hosts"
"""The command that writes a plugin's ``verified.json``."""


# --- what a plugin's verified.json holds


class CellRecord(Record):
    """Outcome of one contract row on one host, and the reason unless it passed."""

    outcome: str
    reason: str | None = None


class HostRecord(Record):
    """Outcomes of one host family: the class that serves it, and its cells by row.

    ``encodes``: written until version 0.1, and not read.
    """

    served_by: str
    encodes: bool | None = None
    cells: dict[str, CellRecord]


class EncodingRecord(Record):
    """How the conversations of one host family are encoded, in words for the page of hosts.

    Attributes:
        served_by: the class that serves it.
        clip: what its processor is given a clip as.
        picture: what it is given a picture as.
        times: where the host is told the frames' times.
        together: whether a conversation may show both.
    """

    served_by: str
    clip: str
    picture: str
    times: str
    together: str


class ReleaseRecord(Record):
    """Outcomes with one version of transformers, by host family."""

    torch: str
    device: str
    peft: str = ""
    hosts: dict[str, HostRecord]


class ContractRecord(Record):
    """A whole verified.json.

    Attributes:
        rows: titles of the contract rows.
        versions: outcomes by transformers version.
        encodings: how host families encode, also of those without outcomes.
    """

    rows: dict[str, str]
    versions: dict[str, ReleaseRecord]
    encodings: dict[str, EncodingRecord] = Field(default_factory=dict)


@dataclass(frozen=True)
class RowResult:
    """Result of one contract row on one host.

    ``outcome``: "pass", "refused", "not applicable" or "failed"; ``reason``: why it did not pass.
    """

    outcome: str
    reason: str = ""


@dataclass(frozen=True)
class LibraryVersions:
    """Versions of the libraries that the contract ran with, without local parts such as ``+cpu``.

    ``peft`` "": not recorded.
    """

    transformers: str
    torch: str
    peft: str = ""

    @classmethod
    def installed(cls) -> "LibraryVersions":
        """Return the versions that this process would import."""
        return cls(**{field.name: version(field.name).partition("+")[0] for field in fields(cls)})

    def without_transformers(self) -> str:
        """Return the other libraries and their versions, as text."""
        return ", ".join(
            f"{name} {value}"
            for name, value in asdict(self).items()
            if value and name != "transformers"
        )

    def __str__(self) -> str:
        return f"transformers {self.transformers}, {self.without_transformers()}"


def contract_results(registry: plugins.Registry) -> dict[str, Any]:
    """Return all plugins' records, merged.

    {"rows": {row: title}, "families": {family: {transformers version: host and release record}},
    "encodings": {family: record}}, newest versions first.
    """
    rows: dict[str, str] = {}
    encodings: dict[str, dict[str, str]] = {}
    families: dict[str, dict[str, Any]] = {}
    for _, record in _plugin_records(registry):
        rows |= record["rows"]
        encodings |= record.get("encodings", {})
        for release in sorted(record["versions"], key=_release_numbers, reverse=True):
            release_record = record["versions"][release]
            environment = {key: value for key, value in release_record.items() if key != "hosts"}
            for family, host in release_record["hosts"].items():
                families.setdefault(family, {})[release] = host | environment
    return {"rows": rows, "families": families, "encodings": encodings}


def contract_of(registry: plugins.Registry, family: str) -> Any:
    """Return the ``contract`` package of the plugin whose record has ``family``, or None."""
    for package, record in _plugin_records(registry):
        known = any(family in release["hosts"] for release in record["versions"].values())
        if known and find_spec(f"{package}.contract"):
            return import_module(f"{package}.contract")
    return None


def _plugin_records(registry: plugins.Registry) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (package, record) of each plugin that ships a record, ordered by plugin name."""
    names = {
        component.plugin for (kind, _), component in registry.components.items() if kind == "host"
    }
    for name in sorted(names):
        plugin: Any = registry.manager.get_plugin(name)
        path = files(plugin.__name__) / "verified.json" if hasattr(plugin, "__path__") else None
        if path is not None and path.is_file():
            yield plugin.__name__, _read_record(path, name).model_dump(exclude_unset=True)


def _read_record(path: Any, plugin: str) -> ContractRecord:
    """Return a plugin's record. Raises :class:`PluginError` naming plugin, file and key."""
    what = "note of what was verified of hosts"
    advice = f"`{SUITE}` writes it."
    try:
        record = parse_record(path.read_bytes(), ContractRecord, str(path), what, advice)
        rows = {
            row
            for release in record.versions.values()
            for host in release.hosts.values()
            for row in host.cells
        }
        untitled = sorted(rows - record.rows.keys())
        if untitled:
            raise DataError(
                f"{path}: the row {shown(untitled[0])} has no title among its rows. {advice}"
            )
    except (OSError, DataError) as error:
        raise PluginError(f"Plugin {plugin!r}: {error}") from error
    return record


def _release_numbers(release: str) -> list[int]:
    """Return a version as numbers to sort by; −1 for a part such as "0rc1", before any number."""
    return [int(part) if part.isdecimal() and len(part) < 10 else -1 for part in release.split(".")]


def _minor(release: str) -> list[int]:
    return _release_numbers(release)[:2]


# --- what was verified


def why_unverified(installed: LibraryVersions, verified: Iterable[LibraryVersions]) -> str | None:
    """Return which installed version is outside of the ``verified`` ones, in words, or None.

    transformers changes its hosts from one minor release to the next, so its minor release must be
    a verified one. The parts of torch and peft that modulate uses are stable, so theirs may lie
    anywhere from the oldest to the newest verified. Patch releases are not told apart.
    """
    verified = list(verified)
    minors = sorted({tuple(_minor(versions.transformers)) for versions in verified})
    if minors and tuple(_minor(installed.transformers)) not in minors:
        known = ", ".join(".".join(map(str, minor)) for minor in minors)
        return f"transformers {installed.transformers}; it was with {known}"
    for library in ("torch", "peft"):
        release = getattr(installed, library)
        recorded = [getattr(versions, library) for versions in verified]
        known_releases = sorted(filter(None, recorded), key=_release_numbers)
        if not known_releases:
            continue
        oldest = known_releases[0]
        newest = known_releases[-1]
        if not _minor(oldest) <= _minor(release) <= _minor(newest):
            return f"{library} {release}; it was with {oldest} to {newest}"
    return None


def verified_versions(registry: plugins.Registry) -> list[LibraryVersions]:
    """Return the library versions that plugins' suites ran with."""
    by_release = {}
    for records in contract_results(registry)["families"].values():
        for release, record in records.items():
            by_release[release] = LibraryVersions(release, record["torch"], record.get("peft", ""))
    return list(by_release.values())


# --- what this machine verified


def local_record_path() -> Path:
    """Return the file in which this machine's own verifications are recorded."""
    folder = os.environ.get(CACHE_VARIABLE)
    if folder:
        return Path(folder) / "verified.json"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "modulate" / "verified.json"


def locally_verified(installed: LibraryVersions) -> set[str]:
    """Return the families that this machine verified with these versions and this modulate.

    Empty if the record cannot be read.
    """
    try:
        entries = json.loads(local_record_path().read_text(encoding="utf-8"))
        return {
            family
            for entry in entries
            if entry["versions"] == _local_key(installed)
            for family in entry["families"]
        }
    except (OSError, ValueError, TypeError, KeyError):  # no record yet, or a damaged one
        return set()


def add_locally_verified(installed: LibraryVersions, families: Iterable[str]) -> Path:
    """Record that ``families`` passed with these versions; return the file.

    Raises :class:`StorageError` where it cannot be written.
    """
    path = local_record_path()
    key = _local_key(installed)
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        others = [entry for entry in entries if entry["versions"] != key]
    except (OSError, ValueError, TypeError, KeyError):  # no record yet, or a damaged one
        others = []
    passed = sorted(locally_verified(installed) | set(families))
    text = json.dumps([*others, {"versions": key, "families": passed}], indent=1) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    # A process that has verified must not go on warning.
    _warning_text.cache_clear()
    return path


def _local_key(installed: LibraryVersions) -> dict[str, str]:
    from modulate import __version__

    return asdict(installed) | {"modulate": __version__}


# --- the warning


def warn_if_unverified(model_type: str) -> None:
    """Warn, once in a process, if hosts of ``model_type`` are unverified with what is installed."""
    text = _warning_text(model_type)
    if text and not _warned:
        _warned.append(text)
        warnings.warn(text, UnverifiedWarning, stacklevel=4)


_warned: list[str] = []


@functools.cache
def _warning_text(model_type: str) -> str:
    registry = plugins.registry()
    installed = LibraryVersions.installed()
    try:
        reason = why_unverified(installed, verified_versions(registry))
    except PluginError:
        # A damaged record of some plugin: `modulate hosts` reports it, and attaching goes on.
        return ""
    if not reason:
        return ""
    families = contract_results(registry)["families"]
    # Of a model type outside every contract, any family verified here is the best evidence.
    needed = {model_type} if model_type in families else set()
    verified_here = locally_verified(installed)
    if verified_here and needed <= verified_here:
        return ""
    command = " ".join(["modulate hosts --verify", *sorted(needed)])
    return (
        f"modulate was never verified with {reason}. `{command}` proves it for your versions, and"
        " ends this warning."
    )
