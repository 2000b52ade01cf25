"""The page is complete, escaped and self-contained."""

import re

import pytest
from typer.testing import CliRunner

from modulate.cli import build
from modulate.errors import MissingFileError, RecipeError
from modulate.report.page import as_html, build_report, write_report
from tests.report.helpers import HOSTILE, ParsedPage, write_text_run


def test_the_page_is_whole_escaped_and_requests_nothing(hostile_run, three_runs):
    text = as_html(build_report([hostile_run, *three_runs]))
    page = ParsedPage(text)
    assert page.open == [] and HOSTILE in page.text and HOSTILE.replace("/", "") in page.text
    names = {name for name, _ in page.tags}
    assert not names & {"script", "link", "iframe", "img", "object", "form"}
    assert {"table", "caption", "svg", "nav"} <= names
    attributes = [(key, value) for _, found in page.tags for key, value in found.items()]
    assert not [key for key, _ in attributes if key.startswith("on")]
    targets = [value for key, value in attributes if key in ("href", "src")]
    assert all(target.startswith(("#", "data:image/jpeg;base64,")) for target in targets)
    assert not re.search(r"https?:|url\(|@import", text)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in attributes


def test_the_page_can_be_read_without_seeing_it(three_runs):
    text = as_html(build_report(three_runs))
    page = ParsedPage(text)
    assert all(picture.get("aria-label") for picture in page.all("svg"))
    assert all(header.get("scope") for header in page.all("th"))
    assert len(page.all("table")) == len(page.all("caption"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    links = {link["href"][1:] for link in page.all("a")}
    assert len(ids) == len(set(ids)) and links <= set(ids)
    assert page.all("html") == [{"lang": "en"}]
    assert "@media print" in text and "prefers-color-scheme: dark" in text


def test_missing_companions_are_pointed_out(three_runs):
    text = as_html(build_report(three_runs[:1]))
    assert "No LoRA-only run of this recipe was given." in text and "no such run given" in text


def test_the_same_runs_give_the_same_files(three_runs, tmp_path):
    first, second = (
        write_report(build_report(three_runs), tmp_path / name) for name in ("one", "two")
    )
    assert {path.name for path in first} >= {
        "index.html",
        "report.md",
        "summary.tex",
        "table1.tex",
        "tests-ours-0.tex",
    }
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_the_command_writes_the_page_and_says_what_is_missing(gallery_run, tmp_path):
    folder = gallery_run[0].run.folder
    out = tmp_path / "out"
    cache = folder.parent / "cache"
    arguments = ["report", folder, "--out", out, "--gallery", 1, "--cache", cache]
    result = CliRunner().invoke(build(), list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    assert "pointed: No LoRA-only run of this recipe was given." in result.output
    assert f"Page: {out / 'index.html'}" in result.output
    assert "data:image/jpeg;base64," in (out / "index.html").read_text()
    assert (out / "report.md").is_file()


def test_a_gallery_that_cannot_be_made_says_how_to_do_without(three_runs, tmp_path):
    def report(run, *options):
        arguments = ["report", str(run.run.folder), "--out", str(tmp_path / "out"), *options]
        return CliRunner().invoke(build(), arguments, catch_exceptions=False)

    signal, blank_trained, _ = three_runs
    with pytest.raises(
        RecipeError, match=r"A gallery needs a run that was trained with its signal.*--gallery 0"
    ):
        report(blank_trained)
    with pytest.raises(
        MissingFileError, match=r"The gallery of .*ours-0 cannot be made: .*--gallery 0\."
    ):
        report(signal)
    assert report(signal, "--gallery", "0").exit_code == 0


def test_runs_of_free_text_are_shown_beside_others_by_the_names_of_their_figures(
    tmp_path, three_runs
):
    texts = {"signal": "1" * 12 + "0" * 8, "none": "-" * 20}
    words = write_text_run(tmp_path, "words-0", texts)
    alone = ParsedPage(as_html(build_report([words]))).text
    assert "Table 1: token F1 by task, %" in alone and "scores of the generated text" in alone
    assert "ccuracy" not in alone.replace("Accuracy is the unweighted", "")
    both = build_report([words, *three_runs])
    assert both.accuracies.title == "Main figure by task, %"
    assert "words-0 (token F1)" in [row[0] for row in both.accuracies.rows]
    assert ParsedPage(as_html(both)).open == []
