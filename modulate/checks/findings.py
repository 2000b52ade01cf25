"""The report of a check, and its findings."""

from dataclasses import dataclass, field
from typing import Literal

Level = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Finding:
    """One result of a check.

    An ``error`` stops or spoils a run, a ``warning`` is probably not intended, an ``info`` is worth
    knowing.
    """

    level: Level
    text: str


@dataclass
class CheckReport:
    """The findings and numbers of a check.

    ``figures``: name → text, as shown to the user. The other fields hold the numbers behind them.
    ``parameters``: number by part. ``samples``: number by split. ``coverage``: by split, the share
    of samples whose signal is active at some step. ``reach``: gradient norm by injected layer, 0.0
    for a dead one. ``weights``: bytes by part. ``memory``: most bytes alive, weights included, by
    phase. ``flops``: operations of an optimizer step, a clip or a sample, by phase. ``cache``:
    bytes of all features.
    """

    recipe: str
    findings: list[Finding] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)
    coverage: dict[str, float] = field(default_factory=dict)
    reach: dict[int, float] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    flops: dict[str, int] = field(default_factory=dict)
    cache: int = 0

    @property
    def ok(self) -> bool:
        """Whether there are no errors."""
        return all(finding.level != "error" for finding in self.findings)

    def add(self, level: Level, text: str) -> None:
        """Add a finding, unless the same one is there already."""
        finding = Finding(level, text)
        if finding not in self.findings:
            self.findings.append(finding)
