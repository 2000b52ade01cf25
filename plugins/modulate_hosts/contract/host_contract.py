"""The quick rows of the contract as a class, which tests of a host of one's own derive from."""

import functools
import unittest
from collections.abc import Callable
from typing import Any, ClassVar

from modulate import plugins
from modulate.hosts.host import understand
from modulate_hosts.contract.prompts import Family
from modulate_hosts.contract.suite import NotApplicable, Row, rows, watched


class HostContract:
    """Rows that every host must pass, those that are quick on any.

    Derive a class whose name begins with ``Test``, and run pytest::

        class TestMyHost(HostContract):
            name = "my_host"
            family = family("my_host", tiny, SQUARE, frame_by_frame, ONE, vision)

    ``modulate_hosts.contract.families`` has ten examples of ``family``. A row that the bare host
    cannot run is skipped.

    Attributes:
        name: the registered name of the host.
        family: how to build a tiny model, and how its prompts are written.
    """

    name: ClassVar[str]
    family: ClassVar[Family]

    def test_its_models_are_served_by_it(self) -> None:
        """A model of the family is understood by the registered class."""
        expected = plugins.get("host", self.name)
        found = type(understand(self.family.build()))
        assert found is expected, (
            f"a model of the family is served by {found.__name__}; `model_types` of"
            f" {expected.__name__} must name its config.model_type."
        )


def _as_test(row: Row) -> Callable[[Any], None]:
    @functools.wraps(row.check, assigned=("__name__", "__doc__"), updated=())
    def test(self: HostContract) -> None:
        try:
            with watched(self.family) as case:
                row.check(case)
        except NotApplicable as reason:
            raise unittest.SkipTest(str(reason)) from None

    del test.__wrapped__  # type: ignore[attr-defined]  # pytest would look at its signature
    return test


for _name, _row in rows().items():
    if _row.families is None:
        setattr(HostContract, _name, _as_test(_row))
