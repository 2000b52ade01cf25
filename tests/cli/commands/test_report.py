"""`modulate report`: a page on finished runs."""

import shutil

from tests.paths import FIXTURES

SAVED = FIXTURES / "saved_by_0_1" / "run"


def test_a_finished_run_gives_a_page_and_its_tables(modulate, tmp_path):
    shutil.copytree(SAVED, tmp_path / "runs" / "saved")
    out = tmp_path / "report"
    code, text, err = modulate("report", tmp_path / "runs" / "saved", "--out", out, "--gallery", 0)
    assert code == 0, err
    names = {path.suffix for path in out.iterdir()}
    assert {".html", ".md", ".tex"} <= names and str(out) in text


def test_a_folder_without_a_run_is_refused(modulate, tmp_path):
    code, _, err = modulate("report", tmp_path, "--out", tmp_path / "report")
    assert code == 1 and err.startswith("Error: ") and not (tmp_path / "report").exists()
