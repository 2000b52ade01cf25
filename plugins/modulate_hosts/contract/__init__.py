"""What every host must do, written once: the test suite runs all of it, `modulate hosts --verify`
its quick rows.

Importing this package imports no torch; :func:`verify` does.
"""

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modulate.hosts.verified_versions import RowResult

DATA = Path(__file__).parents[1] / "verified.json"
"""What the suite saw, by version of transformers: written by ``pytest tests/contract
--write-hosts``.
"""


def complete(versions: dict[str, Any], rows: Collection[str]) -> dict[str, Any]:
    """Return of a record's ``versions`` those that saw all ``rows`` on every host, and of these no
    other rows; the order of the rows is theirs.

    What saw fewer proves less than the table says: it is dropped until the suite has run on that
    release again.
    """
    whole = {
        release: seen
        for release, seen in versions.items()
        if all(host["cells"].keys() >= set(rows) for host in seen["hosts"].values())
    }
    for seen in whole.values():
        for host in seen["hosts"].values():
            host["cells"] = {name: host["cells"][name] for name in rows}
    return whole


def verify(family: str) -> Iterator[tuple[str, RowResult]]:
    """Run the rows that are quick on every family on a tiny random host of ``family``; yield each
    row's title and what came of it.
    """
    from modulate_hosts.contract.families import FAMILIES
    from modulate_hosts.contract.suite import rows, run

    (chosen,) = (f for f in FAMILIES if f.name == family)
    with _small_and_quiet():
        for row in rows().values():
            if row.families is None:
                yield row.title, run(row, chosen)


@contextmanager
def _small_and_quiet() -> Iterator[None]:
    """One thread, since hosts this small gain nothing from more; none of the libraries' advice,
    since what counts is printed row by row.
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
