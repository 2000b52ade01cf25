"""Reports are made of real run folders whose predictions are written by hand, so that every figure
can be counted; the gallery, of a real host.
"""

import json
import re
from dataclasses import asdict
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from torchvision.io import decode_jpeg
from typer.testing import CliRunner

from modulate.cli import build
from modulate.config.recipe import dump, load_recipe
from modulate.errors import DataError, MissingFileError, RecipeError
from modulate.evaluation.evaluate import evaluate
from modulate.evaluation.predictions import Prediction, as_lines, read_predictions
from modulate.inference.pipeline import Pipeline
from modulate.interfaces.components import Reference
from modulate.interfaces.multi_signal import MultiSignal
from modulate.report import svg
from modulate.report.results import compare_groups, compute_results
from modulate.report.gallery import OtherTokens, build_gallery, choose_samples
from modulate.report.html import tag
from modulate.report.overview_tables import SUMMARY_NOTES
from modulate.report.page import as_html, as_markdown, build_report, write_report
from modulate.report.pictures import gallery_section
from modulate.report.run_tables import conditions_table, coverage_table, power_notes, tasks_table
from modulate.report.runs import find_companions, group_runs, read_run
from modulate.report.table import Table, latex, markdown, p_value, plain, points, tex
from modulate.runs.run import Run
from modulate_gaze.scanpath import Scanpath
from tests.tiny import our_hooks

EASY = "present_object_identification_easy"
HARD = "present_object_identification_hard"
VIDEOS = [f"video{k}" for k in range(10)]
LORA_STAGE = "training.stages=[{name: lora, train: [lora], epochs: 1, lr: 1.0e-3}]"
LOG = [
    {"stage": "modulator", "step": 1, "steps": 2, "loss": 3.0, "accuracy": 0.25},
    {"stage": "modulator", "step": 2, "steps": 2, "loss": 2.0, "accuracy": 0.5},
    {"stage": "joint", "step": 1, "steps": 1, "loss": 1.0, "accuracy": 1.0},
    {"stage": "joint", "step": 1, "validation_accuracy": 0.75},
]


def predictions(condition, right, task, active=2):
    """Predictions of one task, two questions to a video, right or wrong as the text of 1 and 0
    says.
    """
    return [
        Prediction(
            f"{task}/{i}",
            task,
            VIDEOS[i // 2],
            condition,
            0,
            int(mark == "0"),
            mark == "1",
            (1.0, 0.5, 0.2, 0.1),
            active,
        )
        for i, mark in enumerate(right)
    ]


def evaluated_run(root, name, rights, *overrides, seed=0, recipe="gazeqwen_tiny", folder=None, more=()):
    """A finished run. ``rights``: condition → {task: which questions are right}."""
    target = root / (folder or name)
    target.mkdir(parents=True)
    (target / "recipe.yaml").write_text(
        dump(
            load_recipe(
                recipe, [f"name={name}", f"seed={seed}", "evaluation.bootstrap=200", *overrides]
            )
        )
    )
    records = [
        p
        for condition, by_task in rights.items()
        for task, right in by_task.items()
        for p in predictions(condition, right, task)
    ]
    (target / "predictions.jsonl").write_text(
        "".join(json.dumps(asdict(p), ensure_ascii=False) + "\n" for p in [*records, *more])
    )
    (target / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LOG))
    return read_run(target)


SIGNAL = {
    "signal": {EASY: "1" * 15 + "0", HARD: "1" * 12},
    "none": {EASY: "1" * 4 + "0" * 12, HARD: "1" * 3 + "0" * 9},
    "shuffled": {EASY: "01" * 8, HARD: "0" * 12},
}
BLANK = {
    "blank": {EASY: "1" * 5 + "0" * 11, HARD: "0" * 12},
    "none": {EASY: "0" * 16, HARD: "0" * 12},
}
LORA = {"none": {EASY: "0" * 8 + "1" * 8, HARD: "0" * 12}}


@pytest.fixture
def three_runs(tmp_path):
    return [
        evaluated_run(tmp_path, "ours-0", SIGNAL),
        evaluated_run(tmp_path, "free-0", BLANK, "training.condition=blank"),
        evaluated_run(tmp_path, "lora-0", LORA, "training.condition=none", LORA_STAGE),
    ]


# --- runs and what stands beside them


def test_seeds_of_one_recipe_are_pooled_and_named(tmp_path):
    runs = [evaluated_run(tmp_path, f"ours-{seed}", SIGNAL, seed=seed) for seed in (12, 3)] + [
        evaluated_run(tmp_path, "other-3", SIGNAL, "encoder.name=coord_pe", seed=3)
    ]
    first, second = group_runs(runs)
    assert (first.name, first.seeds, second.name, second.seeds) == (
        "ours",
        (3, 12),
        "other-3",
        (3,),
    )
    pooled = first.pooled("signal")
    assert len(pooled) == len({r.id for r in pooled}) == 56 and {r.group for r in pooled} == set(
        VIDEOS[:8]
    )
    assert compute_results(first, [first]).main.tasks[EASY].correct == 30


def test_conditions_that_a_run_was_evaluated_under_do_not_make_it_another(tmp_path):
    more = {**SIGNAL, "centre": {EASY: "0" * 16, HARD: "0" * 12}}
    (entry,) = group_runs(
        [
            evaluated_run(tmp_path, "a-0", SIGNAL),
            evaluated_run(
                tmp_path,
                "a-1",
                more,
                "evaluation.conditions=[none, shuffled, centre]",
                "evaluation.bootstrap=500",
                seed=1,
            ),
        ]
    )
    assert (
        entry.seeds_of("centre") == (1,)
        and compute_results(entry, [entry]).scores["centre"].overall.n == 28
    )
    assert "centre: evaluated for seed 1 only" in " ".join(
        conditions_table(compute_results(entry, [entry])).notes
    )


def test_one_recipe_and_seed_twice_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"a-0 and .*b-0 are runs of one recipe with one seed, 0"):
        group_runs([evaluated_run(tmp_path, "a-0", SIGNAL), evaluated_run(tmp_path, "b-0", SIGNAL)])


def test_companions_are_found_by_their_recipes(three_runs):
    ours, free, lora = given = group_runs(three_runs)
    found = find_companions(ours, given)
    assert (
        [c.entry for c in found] == [lora, free]
        and list(found[0].differs) == ["training.stages"]
        and found[1].differs == {}
    )
    figures = compute_results(ours, given)
    (_, against_lora), (_, against_free) = figures.companions
    assert against_lora.tasks[EASY].difference == pytest.approx(
        7 / 16
    ) and against_lora.overall.difference == pytest.approx((7 / 16 + 1) / 2)
    assert (against_free.tasks[EASY].first_only, against_free.tasks[EASY].second_only) == (10, 0)


def test_an_encoder_may_differ_where_the_signal_is_blank_and_a_modulator_may_not(three_runs, tmp_path):
    encoder = evaluated_run(tmp_path, "enc-0", SIGNAL, "encoder.name=coord_pe")
    modulator = evaluated_run(tmp_path, "mod-0", SIGNAL, "modulator.params.latents=8")
    rank = evaluated_run(tmp_path, "rank-0", SIGNAL, "lora.rank=8")
    given = group_runs([*three_runs, encoder, modulator, rank])
    beside = {
        e.name: {c.role: c.entry and c.entry.name for c in find_companions(e, given)} for e in given[3:]
    }
    assert beside == {
        "enc-0": {"LoRA only": "lora-0", "trained with a blank signal": "free-0"},
        "mod-0": {"LoRA only": "lora-0", "trained with a blank signal": None},
        "rank-0": {"LoRA only": None, "trained with a blank signal": None},
    }
    assert find_companions(given[3], given)[1].differs["encoder"][0]["name"] == "coord_pe"


def test_missing_companions_are_said_with_the_command_that_makes_them(three_runs):
    (ours,) = group_runs(three_runs[:1])
    lora, blank = (c.missing for c in find_companions(ours, [ours]))
    assert (
        lora.startswith("No LoRA-only run of this recipe was given.")
        and "training.condition=none training.stages=" in lora
    )
    assert (
        blank.startswith("No run trained with a blank signal of this recipe was given.")
        and "ours-0/recipe.yaml name=… training.condition=blank`" in blank
    )
    page = as_html(build_report(three_runs[:1]))
    assert "No LoRA-only run of this recipe was given." in page and "no such run given" in page


def test_without_lora_there_is_no_lora_only_run(tmp_path):
    stages = "training.stages=[{name: modulator, train: [modulator], epochs: 1}]"
    (entry,) = group_runs([evaluated_run(tmp_path, "bare-0", SIGNAL, "lora=null", stages)])
    assert (
        find_companions(entry, [entry])[0].missing
        == "The recipe has no LoRA, so there is no LoRA-only run to compare with."
    )


def test_other_questions_are_not_paired(tmp_path, three_runs):
    short = evaluated_run(
        tmp_path, "short-0", {"signal": {EASY: "1" * 10, HARD: "1" * 12}}, "encoder.name=coord_pe"
    )
    ours, other = group_runs([three_runs[0], short])
    assert (
        compare_groups(ours, "signal", other, "signal", "x").why_not
        == "not the same questions, so no paired difference"
    )
    seeds = group_runs([three_runs[0], evaluated_run(tmp_path, "ours-5", SIGNAL, "encoder.name=coord_pe", seed=5)])
    assert compare_groups(seeds[0], "signal", seeds[1], "signal", "x").why_not == "no seed in common: 0 and 5"


def test_a_run_without_predictions_or_with_broken_ones_is_refused(tmp_path, three_runs):
    folder = three_runs[0].run.folder
    with pytest.raises(
        MissingFileError,
        match=(
            r"predictions-val\.jsonl does not exist: the run was not evaluated on that split\."
            r" `modulate eval .*ours-0` does it"
        ),
    ):
        read_run(folder, "val")
    (folder / "predictions.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(DataError, match=r"predictions\.jsonl, line 1: no prediction: .*task"):
        read_predictions(folder / "predictions.jsonl")
    line = json.dumps(asdict(predictions("none", "1", "t")[0]), ensure_ascii=False).replace(
        "t/0", "t\u2028"
    )  # a separator of lines, for some
    (folder / "predictions.jsonl").write_text(line + "\n")
    assert read_predictions(folder / "predictions.jsonl")["none"][0].id == "t\u2028"
    with pytest.raises(
        DataError, match="holds no answers under its own condition 'signal', only none"
    ):
        read_run(folder)


# --- figures


def test_counts_are_exact_and_tests_are_adjusted_over_the_tasks(three_runs):
    ours = compute_results(*(lambda given: (given[0], given))(group_runs(three_runs)))
    easy = ours.main.tasks[EASY]
    hard = ours.main.tasks[HARD]
    assert (easy.correct, easy.n, hard.correct, hard.n) == (
        15,
        16,
        12,
        12,
    ) and ours.main.overall.accuracy == pytest.approx((15 / 16 + 1) / 2)
    assert easy.chance == 0.25 and hard.low == hard.high == 1.0
    none = next(c for c in ours.controls if c.second == "none")
    assert (none.tasks[EASY].first_only, none.tasks[EASY].second_only, none.tasks[EASY].p) == (11, 0, 2 / 2**11)
    assert (none.tasks[HARD].p, none.tasks[HARD].p_holm, none.tasks[EASY].p_holm) == (
        2 / 2**9,
        2 / 2**9,
        4 / 2**11,
    )
    assert none.tasks[HARD].p_grouped == 2 / 2**5  # nine questions of five videos
    rows = {row[0]: row for row in tasks_table(ours, Reference()).rows}
    assert rows[EASY][1:3] == ("15/16", "93.8") and rows["mean over tasks"][2] == "96.9"


def test_a_failed_sample_counts_as_wrong_and_is_listed(tmp_path):
    lost = [
        Prediction("lost", EASY, "video9", c, 0, None, False, (), 0, "VideoError: cut off")
        for c in SIGNAL
    ]
    report = build_report([evaluated_run(tmp_path, "a-0", SIGNAL, more=lost)])
    assert (report.results[0].main.tasks[EASY].correct, report.results[0].main.tasks[EASY].n) == (
        15,
        17,
    )
    assert (
        "a-0",
        "lost",
        "signal",
        "VideoError: cut off",
    ) in report.failures.rows and report.failures.notes == ("A failed sample counts as wrong.",)
    left_out = build_report([evaluated_run(tmp_path, "b-0", SIGNAL, "evaluation.failed=left_out", more=lost)])
    assert (
        left_out.results[0].main.tasks[EASY].n == 16
        and "Left out of all figures, as the recipe says" in left_out.failures.notes[0]
    )
    assert build_report([evaluated_run(tmp_path, "c-0", SIGNAL)]).failures is None


def test_what_failed_or_was_left_out_in_training_is_listed(tmp_path):
    run = evaluated_run(tmp_path, "a-0", SIGNAL)
    run.run.write_json(
        "state.json",
        {
            "finished": True,
            "failed": {"clip-7": "VideoError: cut off"},
            "skipped": {"not_finite": 1, "scaled": 2},
            "left_out": 12,
        },
    )
    found = build_report([read_run(run.run.folder)]).failures
    assert found.rows == (("a-0", "clip-7", "training", "VideoError: cut off"),)
    assert found.notes == (
        "A sample that failed in training took no part in its step.",
        "a-0: 1 training step was not taken: loss or gradients were not finite.",
        (
            "a-0: 2 training steps were not taken: fp16's loss scale was too large and has been"
            " lowered."
        ),
        "a-0: 12 training samples were left out, as the signal is empty (training.empty: skip).",
    )


def test_a_small_task_without_a_difference_gets_a_note_on_its_power(tmp_path):
    rights = {
        "signal": {EASY: "1" * 16, HARD: "1" * 3 + "0" * 7},
        "shuffled": {EASY: "0" * 16, HARD: "0" * 2 + "1" * 2 + "0" * 6},
    }
    ours = compute_results(*(lambda given: (given[0], given))(group_runs([evaluated_run(tmp_path, "a-0", rights)])))
    (note,) = power_notes(ours)
    assert (
        f"No difference to shuffled is shown on {HARD} (10 questions: ≥ 67.3 points)" in note
        and EASY not in note
    )


def test_the_verdict_follows_the_controls(three_runs, tmp_path):
    given = group_runs(three_runs)
    assert verdict(compute_results(given[0], given)).startswith(
        "Clearly above the run trained with a blank signal, the control shuffled"
    )
    (deaf,) = group_runs(
        [evaluated_run(tmp_path, "deaf-0", {"signal": SIGNAL["signal"], "shuffled": SIGNAL["signal"]})]
    )
    said = verdict(compute_results(deaf, [deaf]))
    assert said.startswith(
        "Not shown to use its signal: its accuracy is not clearly above the control shuffled."
    ) and said.endswith("LoRA only, trained with a blank signal.")


def test_coverage_counts_samples_that_the_signal_reached(three_runs):
    records = [
        *predictions("signal", "1" * 6, EASY, active=3),
        *predictions("signal", "1" * 12, HARD, active=0),
    ]
    three_runs[0].records["signal"][:] = records
    ours = compute_results(*(lambda given: (given[0], given))(group_runs(three_runs[:1])))
    assert coverage_table(ours).rows == (
        (EASY, "6/6", "100.0", "3.00"),
        (HARD, "0/12", "0.0", "0.00"),
    )


# --- tables


def test_published_rows_stand_below_ours_with_what_is_not_comparable(tmp_path):
    data = "data={name: streamgaze, params: {root: nowhere}}"
    table = build_report([evaluated_run(tmp_path, "ours-0", SIGNAL, data)]).accuracies
    assert table.columns == ("Run", "OI-E", "OI-H", "mean", "95 % interval", "mean of all 10")
    rows = {row[0]: row for row in table.rows if not isinstance(row, str)}
    assert rows["ours-0"][1:4] == ("93.8", "100.0", "96.9") and rows["GazeQwen"] == (
        "GazeQwen",
        "59.4",
        "76.6",
        "68.0",
        "–",
        "63.9",
    )
    assert rows["VITA 1.5"] == ("VITA 1.5", "–", "–", "–", "–", "38.4")
    assert (
        table.notes[0].startswith("Not comparable without care:")
        and "OI-E 16, OI-H 12" in table.notes[-1]
    )


def test_a_data_set_without_published_rows_shows_ours_only(three_runs):
    table = build_report(three_runs).accuracies
    assert [row[0] for row in table.rows] == [
        "ours-0",
        "free-0 (trained with a blank signal)",
        "lora-0 (LoRA only)",
    ]
    assert table.columns == ("Run", "OI-E", "OI-H", "mean", "95 % interval") and not any(
        "omparable" in note for note in table.notes
    )


def test_ablations_are_grouped_by_the_axis_in_which_recipes_differ(tmp_path):
    wrong = {"signal": {EASY: "0" * 16, HARD: "1" * 12}}
    stages = (
        "training.stages=[{name: modulator, train: [modulator], epochs: 5, lr: 1.0e-3}, {name:"
        " joint, train: [modulator], epochs: 0.5, lr: 3.0e-4}]"
    )
    runs = [
        evaluated_run(tmp_path, "shared", wrong, "modulator.params.sharing=shared"),
        evaluated_run(tmp_path, "base", SIGNAL),
        evaluated_run(tmp_path, "encoder", wrong, "encoder={name: coord_pe, params: {dim: 64}}"),
        evaluated_run(tmp_path, "bare", wrong, "lora=null", stages),
        evaluated_run(
            tmp_path,
            "both",
            wrong,
            "encoder={name: coord_pe, params: {dim: 64}}",
            "modulator.params.sharing=shared",
        ),
        evaluated_run(tmp_path, "free", BLANK, "training.condition=blank"),
    ]
    table = build_report(runs).ablations
    headings = [row for row in table.rows if isinstance(row, str)]
    assert headings == [
        "Base: base",
        "Modulator: sharing (per_layer in the base)",
        "Encoder (heatmap_dur in the base)",
        "Lora (rank 4, alpha 8.0, targets q_proj, v_proj in the base)",
        "Several axes at once",
    ]
    rows = {row[1]: row for row in table.rows if not isinstance(row, str)}
    assert (
        list(rows) == ["base", "shared", "encoder", "bare", "both"]
        and rows["shared"][0] == "shared"
        and rows["bare"][0] == "none"
    )
    assert (
        rows["shared"][3] == "50.0"
        and rows["shared"][5] == "−46.9"
        and rows["shared"][8] == "−93.8 (OI-E)"
    )
    assert rows["both"][0] == "encoder = coord_pe; modulator: sharing = shared"
    assert build_report(runs, base="both").ablations.rows[0] == "Base: both"
    with pytest.raises(
        RecipeError,
        match=(
            r"No run trained with its signal is called 'bose', to start ablations from\. Did you"
            r" mean 'base'"
        ),
    ):
        build_report(runs, base="bose")


def test_numbers_are_printed_alike_everywhere():
    assert (points(-0.031), points(0.0), points(None)) == ("−3.1", "+0.0", "–")
    assert [p_value(p) for p in (0.00004, 0.0123, 1.0, None)] == ["< 0.0001", "0.012", "1", "–"]


# --- writing

HOSTILE = "</title><script>alert('x')<img src=q onerror=alert(1)>&amp;|`_*"


class Page(HTMLParser):
    """Tags with their attributes, text, and whether every element is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.text = ""
        self.open = []
        self.feed(text)
        self.close()

    def handle_starttag(self, name, attributes):
        self.tags.append((name, dict(attributes)))
        if name not in ("meta", "img", "br", "hr", "wbr"):
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def hostile_run(tmp_path):
    """A run whose folder, task, sample and error are hostile_run texts; a folder's name holds no slash."""
    lost = [Prediction(HOSTILE, HOSTILE, "video9", "signal", 0, None, False, (), 0, HOSTILE)]
    rights = {
        "signal": {EASY: "1" * 16, HOSTILE: "10" * 4},
        HOSTILE: {EASY: "0" * 16, HOSTILE: "0" * 8},
    }
    more = [*lost, Prediction(HOSTILE, HOSTILE, "video9", HOSTILE, 0, 0, True, (1.0, 0.0), 0)]
    return evaluated_run(tmp_path, "x", rights, "lora.rank=2", folder=HOSTILE.replace("/", ""), more=more)


def test_the_page_is_whole_escaped_and_asks_for_nothing(hostile_run, three_runs):
    text = as_html(build_report([hostile_run, *three_runs]))
    page = Page(text)
    assert page.open == [] and HOSTILE in page.text and HOSTILE.replace("/", "") in page.text
    names = {name for name, _ in page.tags}
    assert (
        not names & {"script", "link", "iframe", "img", "object", "form"}
        and {"table", "caption", "svg", "nav"} <= names
    )
    attributes = [(key, value) for _, found in page.tags for key, value in found.items()]
    assert not [key for key, _ in attributes if key.startswith("on")]
    assert all(
        value.startswith(("#", "data:image/jpeg;base64,"))
        for key, value in attributes
        if key in ("href", "src")
    )
    assert not re.search(r"https?:|url\(|@import", text)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in attributes


def test_the_page_can_be_read_without_seeing_it(three_runs):
    page = Page(as_html(build_report(three_runs)))
    assert all(found.get("aria-label") for name, found in page.tags if name == "svg")
    assert all(found.get("scope") for name, found in page.tags if name == "th")
    assert [n for n, _ in page.tags].count("table") == [n for n, _ in page.tags].count("caption")
    ids = [found["id"] for _, found in page.tags if "id" in found]
    links = {found["href"][1:] for name, found in page.tags if name == "a"}
    assert len(ids) == len(set(ids)) and links <= set(ids) and ("html", {"lang": "en"}) in page.tags
    assert all(
        media in as_html(build_report(three_runs))
        for media in ("@media print", "prefers-color-scheme: dark")
    )


def test_markdown_keeps_its_columns_and_its_text(hostile_run):
    text = as_markdown(build_report([hostile_run]))
    assert "<script" not in text and "<img" not in text and r"\|" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    assert plain("a_b _c_ | <d> `e`") == r"a_b \_c\_ \| &lt;d&gt; \`e\`"


def test_latex_is_escaped_and_balanced(hostile_run):
    report = build_report([hostile_run])
    for table in report.tables:
        text = latex(table)
        body = text.partition("\n")[2]
        assert body.count(r"\begin{") == body.count(r"\end{") and not re.search(
            r"(?<!\\)[%#_]", re.sub(r"\\label\{[^}]*\}", "", body)
        )
        stripped = body.replace(r"\{", "").replace(r"\}", "")
        assert stripped.count("{") == stripped.count("}")
    assert tex("50 % of {a_b} & −3 $") == r"50 \% of \{a\_b\} \& $-$3 \$"
    assert "\n{}[x] & 1" in latex(Table("t", "T", ("a", "b"), (("[x]", "1"),)))
    small = Table("t", "T", ("a", "b"), ("group", ("x", "1")))
    assert (
        r"\multicolumn{2}{l}{\emph{group}} \\" in latex(small)
        and r"x & 1 \\" in latex(small)
        and "| **group** | |" in markdown(small)
    )


def test_the_same_runs_give_the_same_files(three_runs, tmp_path):
    first, second = (write_report(build_report(three_runs), tmp_path / name) for name in ("one", "two"))
    assert {p.name for p in first} >= {
        "index.html",
        "report.md",
        "summary.tex",
        "table1.tex",
        "tests-ours-0.tex",
    }
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_texts_are_escaped_and_tags_are_not():
    assert (
        tag("p", "<b>", tag("i", "&"), None, title='"<')
        == '<p title="&quot;&lt;">&lt;b&gt;<i>&amp;</i></p>'
    )


def test_bars_and_whiskers_are_to_scale():
    page = Page(
        svg.bars(
            [("task", [svg.Bar(0, 0.5, 0.4, 0.6), svg.Bar(1, 1.0, None, None)])], ["a", "b"], "alt"
        )
    )
    half, whole = [
        float(f["width"]) for n, f in page.tags if n == "rect" and float(f["width"]) > 12
    ]
    assert whole == pytest.approx(2 * half, abs=0.2)
    (whisker,) = [
        f
        for n, f in page.tags
        if n == "line" and f.get("class") == "whisker" and f["y1"] == f["y2"]
    ]
    assert float(whisker["x2"]) - float(whisker["x1"]) == pytest.approx(0.2 * whole, abs=0.2)
    assert "50.0 [40.0, 60.0]" in page.text


def test_curves_run_on_over_the_stages(three_runs):
    text = as_html(build_report(three_runs[:1]))
    page = Page(text)
    labels = [f["aria-label"] for n, f in page.tags if n == "svg"]
    assert (
        "loss over training steps: seed 0 ends at 1" in labels
        and "validation accuracy over training steps: seed 0 ends at 0.75" in labels
    )
    points_of = next(f["points"] for n, f in page.tags if n == "polyline")
    xs = [float(pair.split(",")[0]) for pair in points_of.split()]
    assert (
        xs[2] - xs[1] == pytest.approx(xs[1] - xs[0], abs=0.2) and "3 steps" in page.text
    )  # joint's step 1 is step 3


def test_thinning_keeps_means():
    assert svg.thinned([(1, 2), (2, 4), (3, 9)], most=2) == (((1.5, 3.0), (3.0, 9.0)), 2)


# --- gallery


@pytest.fixture(scope="module")
def gallery_run(tmp_path_factory):
    """A real run of the small host, whose modulation writes at random instead of having been
    trained: (recorded, pipeline, modulation).
    """
    root = tmp_path_factory.mktemp("gallery")
    world = [
        f"data.params.root={root}/world",
        "data.params.train=1",
        "data.params.val=1",
        "data.params.test=2",
        "data.params.max_per_split=8",
    ]
    run = Run.create(
        load_recipe(
            "gazeqwen_tiny",
            [
                "name=pointed",
                *world,
                "evaluation.conditions=[none, blank]",
                "evaluation.bootstrap=100",
            ],
        ),
        root,
    )
    pipeline = Pipeline(run.recipe, root / "cache")
    pipeline.make_data()
    modulation = pipeline.fresh_modulation()
    for writer in modulation.out:
        torch.nn.init.normal_(writer.weight, std=0.05)
    modulation.save_pretrained(run.weights)
    evaluate(run, pipeline, modulation)
    return read_run(run.folder), pipeline, modulation


@pytest.fixture(scope="module")
def shown(gallery_run):
    return build_gallery(gallery_run[0], gallery_run[1], 3, most_steps=2)


def test_the_gallery_shows_what_the_residual_is_beside_the_state(gallery_run, shown):
    _, pipeline, modulation = gallery_run
    found = shown.samples[0]
    prepared = pipeline.prepare(found.sample)
    with (
        torch.inference_mode(),
        modulation.attached(pipeline.model),
    ):  # LoRA on, no residual: the first injected layer's input is the same
        plain_states = pipeline.model(
            **pipeline.collate([prepared]).inputs, output_hidden_states=True
        ).hidden_states[modulation.config.injection.layers[0] + 1][0]
    visual = plain_states[
        torch.isin(
            prepared.inputs["input_ids"][0], torch.tensor(list(pipeline.host.visual_ids.values()))
        )
    ]
    with torch.inference_mode():
        delta, empty = (
            modulation.residual(0, modulation.latents([prepared.clip(s)]).layers[0])
            for s in (prepared.signal, prepared.signal.blank())
        )
    expected = (delta.norm(dim=1) / visual.norm(dim=1)).view(found.strength[0].shape)
    assert np.allclose(found.strength[0], expected, rtol=1e-3) and expected.max() > 0.01
    assert (
        np.allclose(
            found.signal_effect[0],
            ((delta - empty).norm(dim=1) / visual.norm(dim=1)).view(expected.shape),
            rtol=1e-3,
            atol=1e-6,
        )
        and found.signal_effect[0].max() > 0
    )
    assert found.other_tokens == {0: (0, 0.0), 1: (0, 0.0)} and found.reproduced
    assert not our_hooks(pipeline.model)


def test_the_gallery_shows_frames_with_the_signals_marks(gallery_run, shown):
    prepared = gallery_run[1].prepare(shown.samples[0].sample)
    first, last = shown.samples[0].steps
    assert (first.index, last.index) == (
        0,
        prepared.grid.steps - 1,
    ) and first.span == prepared.grid.spans[0]
    assert first.marks == prepared.signal.within(*first.span).marks(*first.span) and first.marks
    assert decode_jpeg(torch.frombuffer(bytearray(first.jpeg), dtype=torch.uint8)).shape[1:] == (
        first.size[1],
        first.size[0],
    )
    page = Page("".join(gallery_section(shown)))
    images = [f for n, f in page.tags if n == "image"]
    assert len(images) == 6 and all(f["href"].startswith("data:image/jpeg;base64,") for f in images)
    assert {f["href"] for n, f in page.tags if n == "use"} == {f"#{f['id']}" for f in images}
    assert (
        page.open == []
        and "2 of 4 steps are left out" in page.text
        and shown.samples[0].sample.question in page.text
    )


def test_the_gallery_says_when_answers_are_no_longer_those_recorded(gallery_run):
    recorded, pipeline, _ = gallery_run
    changed = read_run(recorded.run.folder)
    changed.records["none"][:] = [
        Prediction(**{**asdict(r), "logits": [v + 1 for v in r.logits]})
        for r in changed.records["none"]
    ]
    found = build_gallery(changed, pipeline, 1)
    assert not found.samples[
        0
    ].reproduced and "Answered otherwise here than in predictions.jsonl" in "".join(gallery_section(found))


def test_the_gallery_takes_every_kind_in_turn_and_spreads_over_tasks():
    records = {
        "signal": [*predictions("signal", "1" * 8 + "0" * 4, EASY), *predictions("signal", "1" * 4, HARD)],
        "none": [*predictions("none", "0" * 8 + "0110", EASY), *predictions("none", "1001", HARD)],
    }
    without, kinds, chosen = choose_samples(records, 6)
    assert without == "none" and kinds == {
        "right only with the signal": 10,
        "right only without it": 2,
        "wrong either way": 2,
        "right either way": 2,
    }
    assert [kind for _, kind in chosen] == [
        *kinds,
        "right only with the signal",
        "right only without it",
    ]
    assert chosen[0][0] == f"{EASY}/4" and chosen[4][0].startswith(HARD) and len(set(chosen)) == 6
    with pytest.raises(DataError, match="evaluated under none of `none`, `blank` and `host`"):
        choose_samples({"signal": records["signal"]}, 2)


def test_marks_are_where_the_signal_is():
    path = Scanpath([[0.25, 0.5, 1.0, 1.0], [0.75, 0.1, 5.0, 2.0]])
    assert [(m.x, m.y, m.text) for m in path.marks(0.0, 2.0)] == [
        (0.25, 0.5, "0.50–1.50 s")
    ] and path.marks(2.0, 3.0) == ()
    assert [m.text for m in MultiSignal({"gaze": path, "other": path}).marks(4.0, 4.5)] == [
        "gaze: 4.00–6.00 s",
        "other: 4.00–6.00 s",
    ]


def test_the_command_writes_the_page_and_says_what_is_missing(gallery_run, tmp_path):
    folder = gallery_run[0].run.folder
    out = tmp_path / "out"
    result = CliRunner().invoke(
        build(),
        [
            "report",
            str(folder),
            "--out",
            str(out),
            "--gallery",
            "1",
            "--cache",
            str(folder.parent / "cache"),
        ],
    )
    assert result.exit_code == 0, result.output
    assert (
        "gallery_run: No LoRA-only run of this recipe was given." in result.output
        and f"Page: {out / 'index.html'}" in result.output
    )
    assert (
        "data:image/jpeg;base64," in (out / "index.html").read_text()
        and (out / "report.md").is_file()
    )


def test_a_gallery_that_cannot_be_made_says_how_to_do_without(three_runs, tmp_path):
    free, ours = (str(run.run.folder) for run in (three_runs[1], three_runs[0]))
    with pytest.raises(
        RecipeError, match=r"A gallery needs a run that was trained with its signal.*--gallery 0"
    ):
        CliRunner().invoke(
            build(), ["report", free, "--out", str(tmp_path / "out")], catch_exceptions=False
        )
    with pytest.raises(
        MissingFileError,
        match=r"The gallery of .*ours-0 cannot be made: .*To write the page without a gallery, add --gallery 0\.",
    ):
        CliRunner().invoke(
            build(), ["report", ours, "--out", str(tmp_path / "out")], catch_exceptions=False
        )
    assert (
        CliRunner()
        .invoke(build(), ["report", ours, "--out", str(tmp_path / "out"), "--gallery", "0"])
        .exit_code
        == 0
    )
