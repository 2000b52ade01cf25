"""What a check found."""

from dataclasses import dataclass, field
from typing import Literal

Level = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Finding:
    """Something to know: an ``error`` stops or spoils a run, a ``warning`` is probably not meant,
    an ``info`` is worth knowing.
    """

    level: Level
    text: str


@dataclass
class CheckReport:
    """What a check found. ``figures``: what is shown, name → text; the numbers behind them are in
    the fields.

    ``parameters``: by part; ``samples`` and ``coverage``: by split, coverage being the share of
    samples whose signal is active at some step; ``reach``: per injected layer the gradient's norm,
    0.0 for a dead one; ``weights``: bytes by part; ``memory``: bytes alive at most, weights
    included, and ``flops``: operations of an optimizer step or of one clip or sample, both by phase
    of the run; ``cache``: bytes of all features.
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
        """Whether there is no error."""
        return all(f.level != "error" for f in self.findings)

    def add(self, level: Level, text: str) -> None:
        """Add a finding, once."""
        finding = Finding(level, text)
        if finding not in self.findings:
            self.findings.append(finding)
