"""Progress without a terminal, and one progress display for all commands."""

import re
import time

import pytest

from modulate.cli import progress
from tests.paths import ROOT


def test_without_a_terminal_counts_are_printed_at_intervals(monkeypatch, capsys):
    monkeypatch.setattr(progress, "INTERVAL", 0.2)
    with progress.display() as shown:
        shown.set_status("loading")
        time.sleep(0.3)
        for index in range(1, 31):
            shown.update("stage a", index, 30, f"loss {1 / index:.3f}")
            time.sleep(0.02)
        for _ in range(4):
            shown.advance("evaluate b", 2, 8)
    lines = capsys.readouterr().err.splitlines()
    assert 3 <= len(lines) <= 6, lines  # 0.9 s and the end
    assert re.fullmatch(r"\d\d:\d\d:\d\d loading", lines[0])
    assert re.fullmatch(r"\d\d:\d\d:\d\d stage a \d+/30, \d+(\.\d+)?/s, loss 0\.\d{3}", lines[1])
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d done after 0:00:01: stage a 30/30, \d+(\.\d+)?/s, loss 0\.033; evaluate b"
        r" 8/8, .*",
        lines[-1],
    )


def test_a_stalled_task_is_printed_again_and_a_failure_before_the_first_count_is_not_summed_up(
    monkeypatch, capsys
):
    monkeypatch.setattr(progress, "INTERVAL", 0.1)
    with pytest.raises(ValueError, match="x"), progress.display():
        raise ValueError("x")
    assert not capsys.readouterr().err
    with pytest.raises(ValueError, match="x"), progress.display() as shown:
        shown.update("runs", 1, 3)
        time.sleep(0.35)
        raise ValueError("x")
    lines = [line[9:] for line in capsys.readouterr().err.splitlines()]
    assert lines[-1] == "stopped after 0:00:00: runs 1/3"
    assert lines[:-1] == ["runs 1/3"] * len(lines[:-1])
    assert len(lines) >= 3
    with progress.display(False) as shown:
        shown.update("runs", 1, 3)
        time.sleep(0.2)
    assert not capsys.readouterr().err


def test_all_commands_share_one_progress_display():
    """rich's own displays are used in one place only."""
    for path in [*(ROOT / "modulate").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]:
        used = re.findall(
            r"rich\.progress|rich\.live|rich\.status|\.status\(", path.read_text(encoding="utf-8")
        )
        assert not used or path == ROOT / "modulate" / "cli" / "progress.py", path
