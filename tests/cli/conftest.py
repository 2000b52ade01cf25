"""Fixtures of the command line: a command in this process, and a trained run."""

import pytest
from typer.testing import CliRunner

from modulate import cli
from tests.paths import SMALL
from tests.sweeps.conftest import nearly_finished  # noqa: F401  (a fixture)


@pytest.fixture
def modulate(capsys):
    """Return a function that runs a command in this process: (exit code, stdout, stderr)."""

    def run(*args):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return run


@pytest.fixture(scope="session")
def work(tmp_path_factory):
    """A folder with a small world and a run trained on it: folder, result, cached features."""
    folder = tmp_path_factory.mktemp("cli")
    args = [
        "train",
        SMALL,
        f"data.params.root={folder}/world",
        "--runs",
        str(folder / "runs"),
        "--cache",
        str(folder / "cache"),
    ]
    result = CliRunner().invoke(cli.build(), args)
    return folder, result, len(list((folder / "cache").glob("*.safetensors")))
