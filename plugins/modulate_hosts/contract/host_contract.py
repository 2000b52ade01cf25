"""The quick rows of the contract as a class, which tests of a host of one's own derive from."""

import functools
import unittest
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch

from modulate import plugins
from modulate.hosts.encoding import check_encoded
from modulate.hosts.host import understand
from modulate.interfaces.frames import Frames
from modulate.interfaces.messages import Picture, VideoClip, user_turn
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

    Override :meth:`processor` too, to try how conversations are encoded.

    Attributes:
        name: the registered name of the host.
        family: how to build a tiny model, and how its prompts are written.
    """

    name: ClassVar[str]
    family: ClassVar[Family]

    def processor(self) -> Any:
        """Return the family's processor for the tiny model; None: there is none to try."""
        return None

    def test_its_models_are_served_by_it(self) -> None:
        """A model of the family is understood by the registered class."""
        expected = plugins.get("host", self.name)
        found = type(understand(self.family.build()))
        assert found is expected, (
            f"a model of the family is served by {found.__name__}; `model_types` of"
            f" {expected.__name__} must name its config.model_type."
        )

    def test_conversations_are_encoded(self) -> None:
        """A clip and a picture get the placeholders that their grids have, and the model takes it.

        The clip's frames are shown at irregular times, and each is within its own step.
        """
        processor = self.processor()
        if processor is None:
            raise unittest.SkipTest("no processor to try")
        model = self.family.build()
        host = understand(model)
        images = np.random.default_rng(0).integers(0, 256, (4, 64, 96, 3), np.uint8)
        clip = VideoClip(Frames(images, (3.0, 3.5, 4.5, 6.0)), (2.0, 7.0))
        for visuals in ([clip], [Picture(images[0], (0.0, 1.0))], []):
            turn = user_turn(*visuals, "What is it?")
            with plugins.registry().blame("host", self.name, "encode"):
                encoded = check_encoded(host.encode(processor, turn), host, len(visuals))
            with torch.no_grad():
                assert model(**encoded.inputs).logits.isfinite().all()
            if visuals == [clip]:
                assert encoded.grids[0].spans[0][0] == 2.0 and encoded.grids[0].spans[-1][1] == 7.0


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
