"""Eye gaze: the scanpath signal, four encoders of it, the GazeQwen resampler, its released
checkpoint, baselines. Registration imports no torch.
"""

from typing import TYPE_CHECKING

from modulate.hookspecs import Register, hookimpl

if TYPE_CHECKING:
    import typer


@hookimpl
def register_signals(register: Register) -> None:
    """``gaze``: fixations read from ``*_fixation_filtered.csv``."""
    register("gaze", "modulate_gaze.scanpath:Scanpath")


@hookimpl
def register_signal_encoders(register: Register) -> None:
    """Two encoders of where the gaze is (absolute, relative to each token) and two heat maps."""
    register("coord_pe", "modulate_gaze.coordinates:CoordPE")
    register("coord_rel", "modulate_gaze.coordinates:CoordRel")
    register("heatmap_tau", "modulate_gaze.heatmaps:HeatmapTau")
    register("heatmap_dur", "modulate_gaze.heatmaps:HeatmapDur")


@hookimpl
def register_modulators(register: Register) -> None:
    """``gaze_resampler``: the modulator of GazeQwen."""
    register("gaze_resampler", "modulate_gaze.resampler:GazeResampler")


@hookimpl
def register_inputs(register: Register) -> None:
    """Gaze told to the bare host: drawn on the frames, written into the prompt, shown as a saliency
    map.
    """
    register("gaze_overlay", "modulate_gaze.inputs:GazeOverlay")
    register("gaze_text", "modulate_gaze.inputs:GazeText")
    register("gaze_saliency", "modulate_gaze.inputs:GazeSaliency")


@hookimpl
def register_commands(cli: "typer.Typer") -> None:
    """Add ``modulate convert``."""
    from modulate_gaze.commands import convert

    cli.command("convert")(convert)
