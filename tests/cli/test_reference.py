"""Generated pages: they are up to date, and what is stale is noticed."""

import shutil

from modulate.cli import reference
from tests.paths import ROOT


def test_the_generated_pages_are_up_to_date():
    assert reference.main(["--check", "--root", str(ROOT)]) == 0, (
        "run `python -m modulate.cli.reference`"
    )


def test_a_stale_page_is_noticed(tmp_path, capsys):
    for folder in ("docs/examples", "docs/reference", "docs/explanation"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    assert reference.main(["--root", str(tmp_path)]) == 0
    assert reference.main(["--check", "--root", str(tmp_path)]) == 0
    page = tmp_path / "docs" / "reference" / "cli.md"
    page.write_text("old")
    assert reference.main(["--check", "--root", str(tmp_path)]) == 1
    message = f"{page} is out of date; run `python -m modulate.cli.reference`.\n"
    assert capsys.readouterr().err == message
