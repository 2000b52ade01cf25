"""Rows and cells of the contract: a row is what every family's host must pass, a cell is one of
them on one host.

Rows are plain functions of a :class:`Case` that assert. The test suite makes tests of them, and
``modulate hosts --verify`` runs the quick ones.
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
    "lines",
    "embeddings",
    "training",
    "compiled",
    "wrapped",
    "adapters",
    "company",
)
"""Where rows are, in the order of the page."""

D_FEATURES = 12
"""Width of the features of a clip."""


@dataclass(frozen=True)
class Row:
    """One row. ``check`` asserts it of a :class:`Case`; ``families``: those that it takes no long
    time on, None for all.
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
    """Return all rows by name, in the order of the page."""
    for module in MODULES:
        importlib.import_module(f"{__package__}.{module}")
    return {row.name: row for module in MODULES for row in _ROWS[f"{__package__}.{module}"]}


def row(title: str, quick: Sequence[str] | None = None, ignoring: str = "") -> Callable[[Any], Any]:
    """Make a function of a :class:`Case` a row of the contract.

    A parameter ``tmp_path`` of it gets an empty folder. ``quick``: families that it runs on in the
    quick suite (by default all); on the others it is slow. ``ignoring``: a warning that is not ours
    to prevent.
    """

    def mark(check: Any) -> Any:
        wants_folder = "tmp_path" in inspect.signature(check).parameters

        @functools.wraps(check)
        def checked(case: "Case") -> None:
            with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
                if ignoring:
                    warnings.filterwarnings("ignore", ignoring)
                check(case, **({"tmp_path": Path(folder)} if wants_folder else {}))

        del checked.__wrapped__  # type: ignore[attr-defined]  # its signature would show: pytest's folder is not asked for
        _ROWS.setdefault(check.__module__, []).append(Row(check.__name__, title, checked, quick))
        return checked

    return mark


class NotApplicable(BaseException):
    """A row cannot be asked of a host; no failure, and nothing that a row's own ``except
    Exception`` may catch.
    """


@contextmanager
def raises(kind: type[Exception], match: str = "") -> Iterator[None]:
    """Assert that this block raises ``kind`` with a text in which the pattern ``match`` is found."""
    try:
        yield
    except kind as error:
        assert re.search(match, str(error)), (
            f"{kind.__name__} says {str(error)!r}, which does not match {match!r}"
        )
    else:
        raise AssertionError(f"{kind.__name__} was not raised")


def scanpath(x: float = 0.2, y: float = 0.7) -> Scanpath:
    """Two fixations of a second each."""
    return Scanpath(np.array([[x, y, 0.5, 1.0], [1 - x, y, 2.5, 1.0]]))


def fresh(
    host: torch.nn.Module,
    layers: Sequence[int] = (1, 2),
    encoder: str = "heatmap_dur",
    lora: Any = None,
    sharing: str = "per_layer",
) -> Modulation:
    """A small modulation as training finds it."""
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
    """{name: cache} of a forward's output: transformers takes it back under the name that it gives
    it out with.
    """
    return {name: value for name, value in output.items() if isinstance(value, Cache)}


def our_hooks(host: torch.nn.Module) -> list[Any]:
    """Hooks of modulate on any module (transformers keeps some of its own for
    output_hidden_states).
    """
    return [
        h
        for m in host.modules()
        for h in [*m._forward_hooks.values(), *m._forward_pre_hooks.values()]
        if h.__module__.startswith("modulate")
    ]


@functools.cache
def host_of(family: Family) -> torch.nn.Module:
    """One host for each family, for tests that leave it as it was."""
    return family.build()


def strong(
    host: torch.nn.Module,
    layers: Sequence[int] = (1, 2),
    seed: int = 1,
    lora: bool = False,
    **more: Any,
) -> Modulation:
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
        """A modulation that does something; in a cell of the contract with LoRA."""
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

    @contextmanager
    def conditioned(self, clips: Any, **more: Any) -> Any:
        with self.modulation.attached(self.host) as attachment, attachment.condition(clips, **more):
            yield attachment

    def expected(self, batch: Batch, clips: Any, call: Callable[[], Any]) -> Any:
        """Call the plain host with the reference's residuals."""
        with reference.written(self.host, self.modulation, self.dense(batch, clips)):
            return call()

    def adapted(self, call: Callable[[], Any]) -> Any:
        """Call the attached host without a conditioning: with the modulation's LoRA, and no
        residual.
        """
        with self.modulation.attached(self.host):
            return call()

    def bare(self, call: Callable[[], Any]) -> Any:
        """Call the bare host; what transformers refuses there cannot be asked of a modulated one."""
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
        """Note that this cell is a refusal; the test has seen it.

        ``reason`` quotes the upstream limit behind it.
        """
        self.outcome = "refused"
        self.reason = reason


@contextmanager
def watched(family: Family) -> Iterator[Case]:
    """Hand out a case whose host, which the cases of a family share, must afterwards be without
    hooks of ours.
    """
    case = Case(family, lora=True)
    yield case
    assert not our_hooks(case.host), "a row left hooks of ours on the shared host"


def run(row: Row, family: Family) -> RowResult:
    """Return what came of one row on one family, whatever is raised; warnings are left to the
    suite.
    """
    try:
        with warnings.catch_warnings(), watched(family) as case:
            warnings.simplefilter("ignore")
            row.check(case)
    except NotApplicable as reason:
        return RowResult("not applicable", str(reason))
    except Exception as error:
        host_of.cache_clear()  # it may be left with hooks
        return RowResult("failed", f"{type(error).__name__}: {error}".strip())
    return RowResult(case.outcome, case.reason)
