"""The contract as a class for hosts of one's own: it passes right ones and fails wrong ones."""

import unittest
from dataclasses import replace

import pytest

from modulate.errors import ComponentError
from modulate_hosts.contract.families import FAMILIES
from modulate_hosts.contract.host_contract import HostContract
from modulate_hosts.contract.suite import rows
from modulate_hosts.qwen2_vl import Qwen2VL
from tests.contract.processors import PROCESSORS

QWEN = next(family for family in FAMILIES if family.name == "qwen2_vl")


class Right(HostContract):
    name = "qwen2_vl"
    family = QWEN


class Misplaced(HostContract):
    """The prompt says that two visual tokens stand where the host does not put them."""

    name = "qwen2_vl"

    @staticmethod
    def _swapped(kind):
        slots = QWEN.clip(kind)
        slots[1], slots[2] = slots[2], slots[1]
        return slots

    family = replace(QWEN, clip=_swapped)


class OfAnotherFamily(HostContract):
    name = "qwen3_vl"
    family = QWEN


class WithProcessor(Right):
    def processor(self):
        return PROCESSORS["qwen2_vl"]()


def row(cls, name):
    return getattr(cls(), name)


def test_it_has_every_row_that_is_quick_on_all_families():
    quick = {name for name, found in rows().items() if found.families is None}
    assert quick <= set(dir(HostContract)) and len(quick) > 20
    assert all(name.startswith("test_") for name in quick)


@pytest.mark.parametrize("name", ["test_several_videos", "test_its_models_are_served_by_it"])
def test_a_host_that_keeps_it_passes(name):
    row(Right, name)()


def test_conversations_are_tried_if_there_is_a_processor(monkeypatch):
    name = "test_conversations_are_encoded"
    row(WithProcessor, name)()
    with pytest.raises(unittest.SkipTest):
        row(Right, name)()
    good = Qwen2VL.encode
    monkeypatch.setattr(
        Qwen2VL, "encode", lambda *args, **more: replace(good(*args, **more), grids=())
    )
    with pytest.raises(ComponentError, match=r"host 'qwen2_vl' .* returned 0 grids from encode"):
        row(WithProcessor, name)()


def test_a_host_whose_tokens_lie_elsewhere_fails():
    with pytest.raises(AssertionError):
        row(Misplaced, "test_several_videos")()


def test_a_model_that_another_class_serves_is_told():
    with pytest.raises(AssertionError, match=r"is served by Qwen2VL; `model_types` of Qwen3VL"):
        row(OfAnotherFamily, "test_its_models_are_served_by_it")()
