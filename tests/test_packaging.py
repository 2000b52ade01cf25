"""The wheel and a plugin from another package, installed offline."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.paths import ROOT

POINTER = ROOT / "docs" / "tutorial" / "modulate-pointer"


def run(*command, cwd, path=None, timeout=120):
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("PYTHONPATH", "MODULATE_PLUGINS")
    }
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONNOUSERSITE": "1"}
    if path:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def tracked(folder):
    """Return the tracked files of a folder; outside a checkout, all but leftovers of tools."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=folder, capture_output=True, text=True)
    if done.returncode == 0 and done.stdout:
        return [
            Path(name) for name in done.stdout.split("\0") if name and (folder / name).is_file()
        ]
    left = ("__pycache__", ".egg-info")
    return [
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.is_file() and not any(part.endswith(left) for part in path.parts)
    ]


def copied(source, target, tops):
    """Copy the tracked files below ``tops`` to ``target``.

    Building in the checkout would leave folders that carry deleted files into the next wheel.
    """
    for name in tracked(source):
        if name.parts[0] in tops:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, target / name)
    return target


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modulate")
    tops = {path.name for path in ROOT.iterdir()} - {"data", "runs"}
    run(
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        folder / "dist",
        copied(ROOT, folder / "source", tops),
        cwd=folder,
    )
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """A folder with both packages installed.

    First on the import path, it hides the editable install of the test environment.
    """
    pointer = copied(
        POINTER, tmp_path_factory.mktemp("pointer"), {"pyproject.toml", "modulate_pointer"}
    )
    site = tmp_path_factory.mktemp("site")
    offline = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--no-compile"]
    run("-m", "pip", "install", *offline, "--target", site, wheel, pointer, cwd=site)
    return site


def test_the_wheel_holds_every_source_and_data_file_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = set()
    sources = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-dir"
    ]
    assert {
        "/".join(path.parts[:2]) for path in tracked(ROOT) if path.parts[0] == "plugins"
    } <= set(sources.values()), "a plugin is missing from pyproject.toml"
    for name in tracked(ROOT):
        expected |= {
            f"{package}/{name.relative_to(source).as_posix()}"
            for package, source in sources.items()
            if name.is_relative_to(source)
        }
    assert names == expected
    assert {
        "modulate/py.typed",
        "modulate_recipes/gazeqwen_tiny.yaml",
        "modulate_tabletop/host/model.safetensors",
    } <= names
    assert sum(info.compress_size for info in zipfile.ZipFile(wheel).infolist()) < 25e6


def test_the_wheel_declares_command_license_and_python(wheel):
    archive = zipfile.ZipFile(wheel)
    read = {
        Path(name).name: archive.read(name).decode()
        for name in archive.namelist()
        if ".dist-info/" in name
    }
    assert "modulate = modulate.cli:main" in read["entry_points.txt"]
    assert "License-Expression: Apache-2.0" in read["METADATA"]
    assert "Requires-Python: >=3.11" in read["METADATA"]
    assert read["LICENSE"].split() == (ROOT / "LICENSE").read_text().split()


def test_modulate_plugins_lists_the_installed_pointer(site, tmp_path):
    rows = {
        row["name"]: row
        for row in json.loads(run("-m", "modulate", "plugins", "--json", cwd=tmp_path, path=site))
    }
    assert rows["pointer"]["provides"] == [{"kind": "signal_encoder", "name": "pointer"}]
    assert rows["pointer"]["source"] == "modulate-pointer (modulate_pointer)"
    assert rows["pointer"]["version"] == "0.1.0"
    assert not [row for row in rows.values() if row["error"]], (
        "an entry point found twice (here and in the editable install) would be an error too"
    )
    assert rows.keys() >= {"gaze", "vjepa", "dinov2", "hosts", "streamgaze", "tabletop"}


PROBE = """
import importlib.util, json, sys
from pathlib import Path
import torch
import modulate, modulate_pointer
from modulate import ClipInput, Modulation, visual_grid
from modulate.config.injection import Injection
from modulate.interfaces.params import ComponentSpec
from modulate.modulation.module import HostSpec, ModulationConfig
from modulate.utils.paths import resolve
from modulate.config.recipe import recipe_paths
from modulate_gaze.scanpath import Scanpath

site = Path(sys.argv[1]).resolve()
found = [
    modulate.__file__,
    modulate_pointer.__file__,
    importlib.util.find_spec("modulate_gaze").origin,
    resolve("package:modulate_tabletop/host"),
    *recipe_paths().values(),
]
assert all(site in Path(f).resolve().parents for f in found), found

config = ModulationConfig(
    host=HostSpec(model_type="qwen2_5_vl", d_model=32, n_layers=2),
    encoder=ComponentSpec(name="pointer", params={"dim": 16}),
    modulator=ComponentSpec(name="gaze_resampler", params={"width": 16, "latents": 4, "blocks": 1}),
    injection=Injection(layers=(1,)),
    d_features=8,
)
torch.manual_seed(0)
modulation = Modulation(config)
torch.nn.init.normal_(modulation.out[0].weight)
grid = visual_grid([0.0, 1.0, 2.0, 3.0], 2, 3, 4)
features = torch.randn(2, 12, 8)
gaze = Scanpath([[0.9, 0.1, 2.9, 0.4]])
encoded = modulation.encoder([gaze], [grid])
clips = [ClipInput(gaze, grid, features), ClipInput(gaze.blank(), grid, features)]
latents = modulation.latents(clips)
own, blank = modulation.residual(0, latents.layers[0]).split(24)
modulation.residual(0, latents.layers[0]).square().sum().backward()
print(json.dumps({
    "active": encoded.active.tolist(),
    "zero": not encoded.values[0].any(),
    "nearest": int(encoded.values[1].norm(dim=-1).argmax()),
    "changed": [bool(part.any()) for part in (own - blank).split(12)],
    "gradient": bool(modulation.encoder.color.grad.any()),
}))
"""


def test_the_installed_pointer_builds_a_modulation_and_changes_residuals(site, tmp_path):
    assert json.loads(run("-c", PROBE, site, cwd=tmp_path, path=site)) == {
        "active": [False, True],
        "zero": True,
        "nearest": 3,  # top right of 3 × 4
        "changed": [False, True],
        "gradient": True,
    }


def test_the_installed_pointer_trains_through_a_shipped_recipe(site, tmp_path):
    small = [
        "data.params.train=2",
        "data.params.val=1",
        "data.params.test=2",
        "data.params.max_per_split=8",
        "training.batch_size=4",
        "training.warmup_steps=0",
    ]
    small += [
        "training.stages.0.epochs=1",
        "training.stages.1.epochs=0.5",
        "evaluation.bootstrap=100",
        "evaluation.conditions=[blank, shuffled]",
    ]
    run(
        "-m",
        "modulate",
        "train",
        "gazeqwen_tiny",
        "name=pointed",
        "encoder.name=pointer",
        *small,
        cwd=tmp_path,
        path=site,
    )
    metrics = json.loads((tmp_path / "runs" / "pointed" / "metrics.json").read_text())
    assert metrics["controls"].keys() == {"blank", "shuffled"} and not metrics["failed"]
    assert metrics["signal"]["samples"] == 8 and metrics["signal"]["samples_with_active_signal"] > 0
    saved = json.loads((tmp_path / "runs" / "pointed" / "modulation" / "config.json").read_text())
    assert saved["encoder"]["name"] == "pointer"


def test_the_tutorials_package_has_at_most_fifty_lines():
    assert (
        sum(
            len(file.read_text().splitlines())
            for file in (POINTER / "modulate_pointer").glob("*.py")
        )
        <= 50
    )
