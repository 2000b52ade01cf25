"""What a saved modulation needs is recorded, and named with the command that installs it."""

import json
import sys

import pytest

import modulate
from modulate import Modulation, plugins
from modulate.config.required_plugins import RequiredPlugin, components_in, required_plugins
from modulate.errors import CheckpointError, PluginError
from modulate.interfaces.params import ComponentSpec
from modulate.modulation.hub import model_card
from tests.test_plugins import installed
from tests.tiny import fresh

NESTED = ComponentSpec(
    name="together",
    params={"encoders": {"gaze": {"name": "heatmap_dur"}, "hand": {"name": "coord_rel"}}},
)
PUPIL = """
from modulate_gaze.heatmaps import HeatmapDur

@hookimpl
def register_signal_encoders(register):
    register("pupil_map", HeatmapDur)
"""


def test_components_named_in_parameters_count_too():
    assert list(components_in("signal_encoder", NESTED)) == [
        ("signal_encoder", "together"),
        ("signal_encoder", "heatmap_dur"),
        ("signal_encoder", "coord_rel"),
    ]


def test_components_are_grouped_by_package():
    found = required_plugins(
        [*components_in("signal_encoder", NESTED), ("signal", "gaze"), ("signal", "unknown")]
    )
    assert found == (
        RequiredPlugin(
            package="modulate",
            version=found[0].version,
            components={
                "signal": ("gaze",),
                "signal_encoder": ("coord_rel", "heatmap_dur", "together"),
            },
        ),
    )


@pytest.fixture
def saved(tmp_path, monkeypatch, host):
    """A modulation saved while a package with its encoder was installed; the package is gone."""
    site = tmp_path / "site"
    site.mkdir()
    installed(site, "modulate_pupil", PUPIL, version="1.2")
    folder = tmp_path / "saved"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        with_pupil = plugins.registry.__wrapped__()
        patch.setattr(plugins, "registry", lambda: with_pupil)
        modulation = fresh(host)
        encoder = ComponentSpec(name="pupil_map", params={"dim": 16})
        modulation.config = modulation.config.model_copy(update={"encoder": encoder})
        modulation.save_pretrained(folder)
    yield folder
    sys.modules.pop("modulate_pupil", None)


def read(folder):
    return json.loads((folder / "config.json").read_text())


def test_a_saved_modulation_names_its_packages(saved):
    versions = {plugin["package"]: plugin["version"] for plugin in read(saved)["plugins"]}
    assert versions == {
        "modulate": plugins.registry().plugins["gaze"].version,
        "modulate_pupil": "1.2",
    }
    card = model_card(saved, "someone/pupil")
    assert "pip install modulate modulate_pupil\n" in card
    assert f"| made with | modulate {versions['modulate']}, modulate_pupil 1.2 |" in card


def test_a_missing_package_is_named_with_the_command_that_installs_it(saved):
    with pytest.raises(PluginError) as caught:
        Modulation.from_pretrained(saved)
    assert str(caught.value) == (
        f"{saved / 'config.json'} needs the signal_encoder 'pupil_map' of the package"
        " modulate_pupil 1.2, which is not installed here. If you trust its authors: `pip install"
        " modulate_pupil==1.2`."
    )


@pytest.mark.parametrize(
    ("code", "version", "text"),
    [
        ("", "2.0", "which is installed as 2.0 here. If you trust its authors: `pip install"),
        ("1 / 0", "1.2", "Its plugin 'modulate_pupil' is broken: ZeroDivisionError"),
    ],
)
def test_an_installed_package_without_the_component_is_told_apart(
    code, version, text, saved, tmp_path, monkeypatch
):
    site = tmp_path / "other"
    site.mkdir()
    installed(site, "modulate_pupil", code, version)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "modulate_pupil", raising=False)
    other = plugins.registry.__wrapped__()
    monkeypatch.setattr(plugins, "registry", lambda: other)
    with pytest.raises(PluginError) as caught:
        Modulation.from_pretrained(saved)
    assert text in str(caught.value)


def test_a_package_that_is_switched_off_is_no_missing_one(saved, monkeypatch):
    monkeypatch.setenv("MODULATE_PLUGINS", "basics")
    limited = plugins.registry.__wrapped__()
    monkeypatch.setattr(plugins, "registry", lambda: limited)
    config = read(saved)
    config["encoder"]["name"] = "heatmap_dur"
    config["plugins"] = config["plugins"][:1]
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(PluginError, match=r"MODULATE_PLUGINS switches these .* off: .*gaze"):
        Modulation.from_pretrained(saved)


@pytest.mark.parametrize("package", ["x; rm -rf ~", "--index-url=http://evil", "$(id)", "a" * 200])
def test_a_package_whose_name_is_more_than_a_name_is_refused(package, saved):
    config = read(saved)
    config["plugins"][0]["package"] = package
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="plugins"):
        modulate.Modulation.from_pretrained(saved)


def test_a_modulation_saved_without_packages_still_loads(host, tmp_path):
    fresh(host).save_pretrained(tmp_path)
    config = read(tmp_path)
    del config["plugins"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Modulation.from_pretrained(tmp_path).config.plugins == ()
    assert "pip install modulate\n" in model_card(tmp_path, "someone/old")


@pytest.mark.parametrize(
    ("kind", "given"), [("backbone", {"host": "somewhere"}), ("host", {}), ("signal", {})]
)
def test_loading_an_assistant_names_the_package_of_any_part(kind, given, host, tmp_path):
    fresh(host).save_pretrained(tmp_path)
    config = read(tmp_path)
    needed = {"package": "modulate-eyes", "version": "3.0", "components": {kind: ["eyes"]}}
    config["plugins"].append(needed)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Modulation.from_pretrained(tmp_path)
    with pytest.raises(PluginError, match=f"needs the {kind} 'eyes' of the package modulate-eyes"):
        modulate.load(tmp_path, **given)
