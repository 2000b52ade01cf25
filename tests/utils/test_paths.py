from pathlib import Path

import pytest

import modulate
from modulate.errors import MissingFileError
from modulate.utils.paths import is_repository, local_or_hub, resolve


def test_a_plain_path_is_returned_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").touch()
    assert resolve(str(tmp_path / "weights.bin")) == tmp_path / "weights.bin"


def test_a_tilde_means_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "clips").mkdir()
    assert resolve("~/clips") == tmp_path / "clips"


def test_a_file_inside_an_installed_package_is_found() -> None:
    assert (
        resolve("package:modulate/errors.py") == Path(str(modulate.__file__)).parent / "errors.py"
    )


def test_a_folder_of_a_package_and_a_subpackage_are_found() -> None:
    folder = Path(str(modulate.__file__)).parent
    assert resolve("package:modulate") == folder
    assert (
        resolve("package:modulate.cli/__init__.py")
        == resolve("package:modulate/cli/__init__.py")
        == folder / "cli" / "__init__.py"
    )


def test_a_missing_plain_path_is_an_error_with_the_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFileError, match=str(tmp_path / "nowhere.pt")):
        resolve("nowhere.pt")


def test_a_missing_file_of_a_package_is_an_error_with_the_absolute_path() -> None:
    with pytest.raises(
        MissingFileError, match=str(Path(str(modulate.__file__)).parent / "nowhere.pt")
    ):
        resolve("package:modulate/nowhere.pt")


@pytest.mark.parametrize(
    "text",
    ["package:no_such_package/x", "package:no_such_package.inner/x", "package:/x", "package:"],
)
def test_a_package_that_is_not_installed_is_an_error_that_says_so(text: str) -> None:
    with pytest.raises(MissingFileError, match="no such package is installed"):
        resolve(text)


@pytest.mark.parametrize("text", ["package:modulate/../pyproject.toml", "package:modulate//etc"])
def test_a_path_that_leaves_its_package_is_refused(text: str) -> None:
    with pytest.raises(MissingFileError, match="leaves the package"):
        resolve(text)


def test_an_empty_path_is_an_error_and_not_the_working_directory() -> None:
    with pytest.raises(MissingFileError, match="The path is empty"):
        resolve(" ")


@pytest.mark.parametrize(
    "text",
    ["x" * 5000, "~nobody_of_this_name/x", "a\0b", "package:modulate_tabletop/" + "x" * 5000],
)
def test_impossible_names_are_refused(text):
    with pytest.raises(MissingFileError, match=r"cannot be looked for|does not exist"):
        resolve(text)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("someone/gaze", True),
        ("gaze", False),
        ("./a/b", False),
        ("a/b/c", False),
        ("/a", False),
        ("~/a", False),
        ("package:modulate_tabletop/host", False),
    ],
)
def test_what_looks_like_a_repository(name, expected):
    assert is_repository(name) is expected


def test_what_exists_here_is_no_repository_and_what_cannot_be_one_is_refused(tmp_path, monkeypatch):
    (tmp_path / "hosts" / "internvl").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not is_repository("hosts/internvl") and is_repository("hosts/other")
    for here in ("hosts/internvl", "./hosts/internvl", "hosts/internvl/", "hosts"):
        assert local_or_hub(here) == str((tmp_path / here).absolute())
    assert local_or_hub("package:modulate") == str(Path(str(modulate.__file__)).parent)
    for on_hub in ("someone/model", "gpt2", "some.one/model-1.5"):
        assert local_or_hub(on_hub) == on_hub
    for nowhere in ("my/hosts/internvl", "./internvl", "hosts/other/", "~/internvl", "", "/gone"):
        with pytest.raises(MissingFileError, match=r"does not exist: looked for /|path is empty"):
            local_or_hub(nowhere)
