"""Fixtures of the contract suite, and the option that writes its outcomes to a file."""

import json
from dataclasses import asdict

import pytest
import torch

from modulate.hosts.host import understand
from modulate.hosts.verified_versions import LibraryVersions
from modulate_hosts.contract import DATA, complete
from modulate_hosts.contract.families import FAMILIES
from modulate_hosts.contract.suite import rows, watched
from tests.contract.encodings import encoding_of
from tests.contract.processors import PROCESSORS

NOT_RUN = {
    "outcome": "not run",
    "reason": "slow on this family, and left out when this table was made; `make hosts` runs it",
}
OUTCOMES = pytest.StashKey[dict[str, dict[str, list[dict[str, str]]]]]()


def pytest_addoption(parser):
    parser.addoption(
        "--write-hosts",
        action="store_true",
        help=(
            f"write the outcomes of the contract suite to {DATA.name}, the source of the hosts page"
        ),
    )


def pytest_configure(config):
    config.stash[OUTCOMES] = {family.name: {} for family in FAMILIES}


@pytest.fixture
def case(request):
    with watched(request.param) as case:
        yield case


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    case = item.funcargs.get("case") if item.get_closest_marker("contract") else None
    if case is not None and (report.when == "call" or report.failed):
        cell = {"outcome": "failed" if report.failed else case.outcome}
        if case.reason and not report.failed:
            cell["reason"] = case.reason
        item.config.stash[OUTCOMES][case.family.name].setdefault(item.originalname, []).append(cell)
    return report


def pytest_sessionfinish(session):
    if session.config.getoption("--write-hosts", default=False):
        problem = write(session.config.stash[OUTCOMES])
        print(f"\n{problem or f'wrote {DATA}'}")
        session.exitstatus = session.exitstatus or bool(problem)


def write(outcomes):
    """Write the cells of this transformers version to the data file.

    Return why nothing could be written, or "". Slow rows that did not run are recorded as not run.
    """
    hosts = {}
    titles = {name: row.title for name, row in rows().items()}
    rank = ("pass", "not run", "not applicable", "refused", "failed")
    for family in FAMILIES:
        cells_by_row = outcomes[family.name]
        missing = [
            name for name, row in rows().items() if name not in cells_by_row and row.quick(family)
        ]
        if missing:
            return (
                f"Nothing written: {family.name} did not run {', '.join(missing)}; run the whole of"
                " tests/contract."
            )
        # A row with several cells on one host has the worst of their outcomes.
        cells = {
            name: max(
                cells_by_row.get(name, [NOT_RUN]), key=lambda cell: rank.index(cell["outcome"])
            )
            for name in titles
        }
        failed = [name for name, cell in cells.items() if cell["outcome"] == "failed"]
        if failed:
            return f"Nothing written: {family.name} fails {', '.join(failed)}."
        host = understand(family.build())
        hosts[family.name] = {
            "served_by": type(host).__name__,
            "cells": cells,
        }
    record = asdict(LibraryVersions.installed())
    release = record.pop("transformers")
    record |= {"device": "CUDA" if torch.cuda.is_available() else "CPU", "hosts": hosts}
    versions = json.loads(DATA.read_text())["versions"] if DATA.is_file() else {}
    versions |= {release: record}
    complete_versions = complete(versions, titles)
    for dropped in versions.keys() - complete_versions.keys():
        print(f"\nDropped transformers {dropped}: it has not seen all of today's rows.")
    encodings = {name: encoding_of(name) for name in PROCESSORS}
    data = {"rows": titles, "versions": complete_versions, "encodings": encodings}
    DATA.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    return ""
