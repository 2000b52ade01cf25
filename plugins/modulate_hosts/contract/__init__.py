"""The contract that every host must fulfill: rows for the tests and for `modulate hosts --verify`.

The test suite runs all rows, the command the quick ones. Importing this package imports no torch;
:func:`verify` does.
"""

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modulate.hosts.verified_versions import RowResult

DATA = Path(__file__).parents[1] / "verified.json"
"""Outcomes of the suite by version of transformers; ``pytest tests/contract --write-hosts`` writes
them.
"""


def complete(versions: dict[str, Any], rows: Collection[str]) -> dict[str, Any]:
    """Return those of ``versions`` that have all ``rows`` on every host, and only these rows.

    A version with fewer rows proves less than the table says. It is dropped until the suite has run
    with it again. The cells are put into the order of ``rows``.
    """
    complete_versions = {
        release: record
        for release, record in versions.items()
        if all(host["cells"].keys() >= set(rows) for host in record["hosts"].values())
    }
    for record in complete_versions.values():
        for host in record["hosts"].values():
            host["cells"] = {name: host["cells"][name] for name in rows}
    return complete_versions


def verify(family: str) -> Iterator[tuple[str, RowResult]]:
    """Run the quick rows on a tiny random host of ``family``; yield each title and result.

    Quick rows are those that are quick on every family.
    """
    from modulate_hosts.contract.families import FAMILIES
    from modulate_hosts.contract.suite import rows, run

    (chosen,) = (candidate for candidate in FAMILIES if candidate.name == family)
    with _small_and_quiet():
        for row in rows().values():
            if row.families is None:
                yield row.title, run(row, chosen)


@contextmanager
def _small_and_quiet() -> Iterator[None]:
    """Run this block with one thread, and without the libraries' log messages.

    Hosts this small gain nothing from more threads, and the rows' results say what counts.
    """
    import torch

    threads = torch.get_num_threads()
    silenced = logging.root.manager.disable
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        logging.disable(silenced)
