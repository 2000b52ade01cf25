"""The page on free text shows the recorded figures."""

import json
import re

from tests.paths import ROOT

RESULTS = ROOT / "docs" / "results"


def cell(score):
    low, high = score["interval"]
    return f"{100 * score['overall']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def test_the_table_has_the_recorded_figures():
    record = json.loads((RESULTS / "free-text.json").read_text())
    page = (RESULTS / "free-text.md").read_text()
    shown = {
        name: cells.strip(" |").split(" | ")
        for name, cells in re.findall(r"^\| `(\w+)`:[^|]*\|(.+)$", page, re.M)
    }
    text = record["text"]["conditions"]
    options = record["likelihood"]["conditions"]
    assert shown == {
        name: [
            *(cell(scores[key]) for key in ("exact_match", "token_f1", "bleu", "rouge_l")),
            cell(options[name]["accuracy"]),
        ]
        for name, scores in text.items()
    }
    assert record["text"]["n"] == record["likelihood"]["n"] >= 1000
