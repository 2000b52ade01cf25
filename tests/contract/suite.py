"""Rows and cells of the contract: a row is a test that every family's host must pass, a cell is one of them on one host."""

import functools
import importlib
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from families import FAMILIES
from prompts import Batch, Family, write
from tiny import D_FEATURES, fresh, scanpath

from modulate import ClipInput, Modulation

DATA = Path(__file__).parents[2] / "plugins" / "modulate_hosts" / "verified.json"
"""What the suite saw, by version of transformers: written with the option ``--write-hosts``."""

ROWS: dict[str, str] = {}
"""Every row whose module is imported: its test's name → what it says."""

MODULES = ("test_forward", "test_generation", "test_lines", "test_embeddings", "test_training", "test_compiled", "test_wrapped", "test_adapters", "test_company")
"""Where rows are, in the order of the page."""

_where: dict[str, str] = {}


def rows() -> dict[str, str]:
    """All rows in the order of the page."""
    for module in MODULES:
        importlib.import_module(module)
    return {name: ROWS[name] for module in MODULES for name in ROWS if _where[name] == module}


def row(title: str, quick: Sequence[str] | None = None) -> Callable[[Any], Any]:
    """Make a test a row of the contract. ``quick``: families that it runs on in the quick suite (by default all); the others are slow."""

    def mark(test: Any) -> Any:
        ROWS[test.__name__], _where[test.__name__] = title, test.__module__
        slow = lambda family: [] if quick is None or family.name in quick else [pytest.mark.slow]
        cells = [pytest.param(family, id=family.name, marks=slow(family)) for family in FAMILIES]
        return pytest.mark.contract(pytest.mark.parametrize("case", cells, indirect=True)(test))

    return mark


@functools.cache
def host_of(family: Family) -> torch.nn.Module:
    """One host for each family, for tests that leave it as it was."""
    return family.build()


def strong(host: torch.nn.Module, layers: Sequence[int] = (1, 2), seed: int = 1, lora: bool = False, **more: Any) -> Modulation:
    """A modulation whose output projections, and LoRA where it has one, are not zero any more."""
    modulation = fresh(host, layers=layers, lora=lora, **more)
    torch.manual_seed(seed)
    for projection in modulation.out:
        torch.nn.init.normal_(projection.weight, std=0.5)
    for name, value in (modulation.lora or {}).items():
        if name.endswith("|B"):
            torch.nn.init.normal_(value, std=0.1)
    return modulation.eval()


def close(a: Any, b: Any, atol: float = 1e-4) -> None:
    torch.testing.assert_close(a, b, atol=atol, rtol=1e-4)


@dataclass
class Case:
    """One family under test, with what its cell turned out to be beyond passing."""

    family: Family
    lora: bool = False
    outcome: str = "pass"
    reason: str = ""

    @property
    def host(self) -> torch.nn.Module:
        return host_of(self.family)

    def write(self, *rows: Sequence[Any], side: str = "left", first: int = 0) -> Batch:
        return write(self.family, rows, side, first)

    def clip(self, kind: str, seed: int) -> ClipInput:
        """A clip with a signal and features of its own."""
        grid = self.family.grids[kind]
        values = torch.randn(grid.steps, grid.tokens_per_step, D_FEATURES, generator=torch.Generator().manual_seed(100 + seed))
        return ClipInput(scanpath(0.1 + 0.17 * (seed % 5), 0.8 - 0.2 * (seed % 4)), grid, values)

    def clips(self, batch: Batch, first: int = 0) -> list[list[ClipInput]]:
        numbers = iter(range(first, 1000))
        return [[self.clip(kind, next(numbers)) for kind in kinds] for kinds in batch.kinds]

    def strong(self, host: torch.nn.Module, layers: Sequence[int] = (1, 2), seed: int = 1) -> Modulation:
        """A modulation that does something; in a cell of the contract with LoRA."""
        return strong(host, layers, seed, lora=self.lora)

    @functools.cached_property
    def modulation(self) -> Modulation:
        return self.strong(self.host)

    def dense(self, batch: Batch, clips: Sequence[Sequence[ClipInput]], modulation: Modulation | None = None) -> list[torch.Tensor]:
        with torch.no_grad():
            return reference.dense(modulation or self.modulation, clips, batch.positions, batch.inputs["input_ids"].shape[1])

    @contextmanager
    def conditioned(self, clips: Any, **more: Any) -> Any:
        with self.modulation.attached(self.host) as attachment, attachment.condition(clips, **more):
            yield attachment

    def expected(self, batch: Batch, clips: Any, call: Callable[[], Any]) -> Any:
        """Call the plain host with the reference's residuals."""
        with reference.written(self.host, self.modulation, self.dense(batch, clips)):
            return call()

    def adapted(self, call: Callable[[], Any]) -> Any:
        """Call the attached host without a conditioning: with the modulation's LoRA, and no residual."""
        with self.modulation.attached(self.host):
            return call()

    def bare(self, call: Callable[[], Any]) -> Any:
        """Call the bare host; what transformers refuses there cannot be asked of a modulated one."""
        try:
            return call()
        except Exception as error:
            text = str(error).strip().splitlines()
            self.not_applicable(f"the bare host refuses: {type(error).__name__}: {text[0] if text else ''}")

    def not_applicable(self, reason: str) -> None:
        self.outcome, self.reason = "not applicable", reason
        pytest.skip(reason)

    def refused(self, reason: str) -> None:
        """Note that this cell is a refusal; the test has seen it. ``reason`` quotes the upstream limit behind it."""
        self.outcome, self.reason = "refused", reason

