"""Rows of the contract, requirements on all hosts, and their cells: one row on one host.

Rows are plain functions of a :class:`Case` with assertions. The test suite turns them into tests,
and ``modulate hosts --verify`` runs the quick ones.
"""

import functools
import importlib
import inspect
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Cache

from modulate import ClipInput, Modulation
from modulate.config.injection import Injection, LoraParams
from modulate.hosts.verified_versions import RowResult
from modulate.interfaces.params import ComponentSpec
from modulate_gaze.scanpath import Scanpath
from modulate_hosts.contract import reference
from modulate_hosts.contract.prompts import Batch, Family, write

MODULES = (
    "forward",
    "generation",
    "cache_branches",
    "embeddings",
    "training",
    "compiled",
    "wrapped",
    "adapters",
    "coexistence",
)
"""Modules with rows, in the order of the reference page."""

D_FEATURES = 12
"""Width of the features of a clip."""


@dataclass(frozen=True)
class Row:
    """One row of the contract.

    ``check`` asserts it of a :class:`Case`. ``families``: those on which it is quick; None: all.
    """

    name: str
    title: str
    check: Callable[["Case"], None]
    families: Sequence[str] | None

    def quick(self, family: Family) -> bool:
        """Return whether the quick suite runs this row on ``family``."""
        return self.families is None or family.name in self.families


_ROWS: dict[str, list[Row]] = {}  # module → its rows


def rows() -> dict[str, Row]:
    """Return all rows by name, in the order of the reference page."""
    for module in MODULES:
        importlib.import_module(f"{__package__}.{module}")
    return {row.name: row for module in MODULES for row in _ROWS[f"{__package__}.{module}"]}


def row(title: str, quick: Sequence[str] | None = None, ignoring: str = "") -> Callable[[Any], Any]:
    """Register a function of a :class:`Case` as a row of the contract.

    Its parameter ``tmp_path``, if any, receives an empty folder. ``quick``: families on which it
    runs in the quick suite (by default all); on the others it is slow. ``ignoring``: pattern of a
    warning that modulate cannot prevent.
    """

    def mark(check: Any) -> Any:
        wants_folder = "tmp_path" in inspect.signature(check).parameters

        @functools.wraps(check)
        def checked(case: "Case") -> None:
            with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
                if ignoring:
                    warnings.filterwarnings("ignore", ignoring)
                check(case, **({"tmp_path": Path(folder)} if wants_folder else {}))

        # Through it, pytest would see `tmp_path` in the signature and pass its own folder.
        del checked.__wrapped__  # type: ignore[attr-defined]
        _ROWS.setdefault(check.__module__, []).append(Row(check.__name__, title, checked, quick))
        return checked

    return mark


class NotApplicable(BaseException):
    """A row does not apply to a host.

    This is no failure, and no ``Exception``: a row's own ``except Exception`` must not catch it.
    """


@contextmanager
def raises(kind: type[Exception], match: str = "") -> Iterator[None]:
    """Assert that this block raises ``kind`` with a text that matches the pattern ``match``."""
    try:
        yield
    except kind as error:
        assert re.search(match, str(error)), (
            f"{kind.__name__} says {str(error)!r}, which does not match {match!r}"
        )
    else:
        raise AssertionError(f"{kind.__name__} was not raised")


def scanpath(x: float = 0.2, y: float = 0.7) -> Scanpath:
    """Return two fixations of one second each."""
    return Scanpath(np.array([[x, y, 0.5, 1.0], [1 - x, y, 2.5, 1.0]]))


def fresh(
    host: torch.nn.Module,
    layers: Sequence[int] = (1, 2),
    encoder: str = "heatmap_dur",
    lora: Any = None,
    sharing: str = "per_layer",
) -> Modulation:
    """Return a small modulation as training starts with it: without any effect."""
    torch.manual_seed(3)
    return Modulation.for_host(
        host,
        encoder=ComponentSpec(name=encoder, params={"dim": 16}),
        modulator=ComponentSpec(
            name="gaze_resampler",
            params={"width": 16, "latents": 4, "blocks": 1, "sharing": sharing},
        ),
        injection=Injection(layers=tuple(layers)),
        d_features=D_FEATURES,
        lora=LoraParams(rank=2) if lora else None,
    )


def cached(output: Any) -> dict[str, Cache]:
    """Return {name: cache} of a forward's output; the next forward takes it under that name."""
    return {name: value for name, value in output.items() if isinstance(value, Cache)}


def our_hooks(host: torch.nn.Module) -> list[Any]:
    """Return modulate's hooks on any module; transformers has its own for output_hidden_states."""
    return [
        hook
        for module in host.modules()
        for hook in [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        if hook.__module__.startswith("modulate")
    ]


@functools.cache
def host_of(family: Family) -> torch.nn.Module:
    """Return the family's shared host, for tests that leave it unchanged."""
    return family.build()


def strong(
    host: torch.nn.Module,
    layers: Sequence[int] = (1, 2),
    seed: int = 1,
    lora: bool = False,
    **more: Any,
) -> Modulation:
    """Return a modulation with an effect: its output projections, and LoRA if any, are not zero."""
    modulation = fresh(host, layers=layers, lora=lora, **more)
    torch.manual_seed(seed)
    for projection in modulation.out:
        torch.nn.init.normal_(projection.weight, std=0.5)
    for name, value in (modulation.lora or {}).items():
        if name.endswith("|B"):
            torch.nn.init.normal_(value, std=0.1)
    return modulation.eval()


def close(actual: Any, expected: Any, atol: float = 1e-4) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=1e-4)


@dataclass
class Case:
    """One family under test, and the outcome of its cell where that is not a pass."""

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
        """Return clip number ``seed``, with its own signal and features."""
        grid = self.family.grids[kind]
        values = torch.randn(
            grid.steps,
            grid.tokens_per_step,
            D_FEATURES,
            generator=torch.Generator().manual_seed(100 + seed),
        )
        return ClipInput(scanpath(0.1 + 0.17 * (seed % 5), 0.8 - 0.2 * (seed % 4)), grid, values)

    def clips(self, batch: Batch, first: int = 0) -> list[list[ClipInput]]:
        numbers = iter(range(first, 1000))
        return [[self.clip(kind, next(numbers)) for kind in kinds] for kinds in batch.kinds]

    def strong(
        self, host: torch.nn.Module, layers: Sequence[int] = (1, 2), seed: int = 1
    ) -> Modulation:
        """Return a modulation with an effect; in a cell of the contract, with LoRA too."""
        return strong(host, layers, seed, lora=self.lora)

    @functools.cached_property
    def modulation(self) -> Modulation:
        return self.strong(self.host)

    def dense(
        self,
        batch: Batch,
        clips: Sequence[Sequence[ClipInput]],
        modulation: Modulation | None = None,
    ) -> list[torch.Tensor]:
        with torch.no_grad():
            return reference.dense(
                modulation or self.modulation,
                clips,
                batch.positions,
                batch.inputs["input_ids"].shape[1],
            )

    def two_prompts(self) -> tuple[Batch, list[list[ClipInput]]]:
        """Return two rows of different length, one video each, and their clips."""
        batch = self.write(["video", (7, 8, 9)], ["video", (10, 11)])
        return batch, self.clips(batch)

    @contextmanager
    def conditioned(self, clips: Any, **more: Any) -> Any:
        with self.modulation.attached(self.host) as attachment, attachment.condition(clips, **more):
            yield attachment

    def expected(self, batch: Batch, clips: Any, call: Callable[[], Any]) -> Any:
        """Return what ``call`` gives on the plain host with the reference's residuals."""
        with reference.written(self.host, self.modulation, self.dense(batch, clips)):
            return call()

    def adapted(self, call: Callable[[], Any]) -> Any:
        """Return what ``call`` gives with the modulation's LoRA and without residuals."""
        with self.modulation.attached(self.host):
            return call()

    def bare(self, call: Callable[[], Any]) -> Any:
        """Return what ``call`` gives on the bare host; if that refuses, the row does not apply."""
        try:
            return call()
        except Exception as error:
            text = str(error).strip().splitlines()
            self.not_applicable(
                f"the bare host refuses: {type(error).__name__}: {text[0] if text else ''}"
            )

    def not_applicable(self, reason: str) -> None:
        self.outcome = "not applicable"
        self.reason = reason
        raise NotApplicable(reason)

    def refused(self, reason: str) -> None:
        """Note that the row ended in the right error; ``reason`` quotes the upstream limit."""
        self.outcome = "refused"
        self.reason = reason


@contextmanager
def watched(family: Family) -> Iterator[Case]:
    """Yield a case, then assert that no hook of modulate is left on the family's shared host."""
    case = Case(family, lora=True)
    yield case
    assert not our_hooks(case.host), "a row left hooks of ours on the shared host"


def run(row: Row, family: Family) -> RowResult:
    """Return the result of one row on one family, whatever it raises.

    Warnings are silent here; the test suite turns them into errors.
    """
    try:
        with warnings.catch_warnings(), watched(family) as case:
            warnings.simplefilter("ignore")
            row.check(case)
    except NotApplicable as reason:
        return RowResult("not applicable", str(reason))
    except Exception as error:
        # A failed row may have left its hooks on the shared host.
        host_of.cache_clear()
        return RowResult("failed", f"{type(error).__name__}: {error}".strip())
    return RowResult(case.outcome, case.reason)
