"""The registration of the plugin."""

import subprocess
import sys

import modulate_gaze
from modulate.interfaces.components import InputTransform, Modulator, SignalEncoder
from modulate.interfaces.signal import Signal
from modulate.plugins import Registry

EXPECTED = {
    "signal": {"gaze": Signal},
    "signal_encoder": dict.fromkeys(
        ("coord_pe", "coord_rel", "heatmap_dur", "heatmap_tau"), SignalEncoder
    ),
    "modulator": {"gaze_resampler": Modulator},
    "input": dict.fromkeys(("gaze_overlay", "gaze_text", "gaze_saliency"), InputTransform),
}


def test_every_component_registers_and_loads_as_its_kind():
    registry = Registry([])
    provided = registry.add("gaze", modulate_gaze).provides
    assert sorted(provided) == sorted(
        (kind, name) for kind, names in EXPECTED.items() for name in names
    )
    for kind, names in EXPECTED.items():
        for name, base in names.items():
            assert issubclass(registry.get(kind, name), base)


def test_every_parameter_has_a_description_and_a_source_or_a_unit():
    registry = Registry([])
    for kind, name in registry.add("gaze", modulate_gaze).provides:
        if kind != "signal":
            fields = registry.get(kind, name).Params.model_fields
            assert fields
            assert not [
                name
                for name, info in fields.items()
                if not info.description
                or not any(mark in info.description for mark in ("[", "GazeQwen"))
            ]


def test_registering_and_reading_a_scanpath_imports_no_torch():
    code = "import modulate_gaze, modulate_gaze.scanpath, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
