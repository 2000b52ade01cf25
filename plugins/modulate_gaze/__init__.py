"""Eye gaze: scanpaths, four encoders, the GazeQwen resampler, its released checkpoint, baselines.

Registration imports no torch.
"""

from typing import TYPE_CHECKING

from modulate.hookspecs import Register, hookimpl

if TYPE_CHECKING:
    import typer


@hookimpl
def register_signals(register: Register) -> None:
    """Register ``gaze``: fixations from ``*_fixation_filtered.csv``."""
    register("gaze", "modulate_gaze.scanpath:Scanpath")


@hookimpl
def register_signal_encoders(register: Register) -> None:
    """Register two encoders of positions (absolute, relative to each token) and two heat maps."""
    register("coord_pe", "modulate_gaze.coordinates:CoordPE")
    register("coord_rel", "modulate_gaze.coordinates:CoordRel")
    register("heatmap_tau", "modulate_gaze.heatmaps:HeatmapTau")
    register("heatmap_dur", "modulate_gaze.heatmaps:HeatmapDur")


@hookimpl
def register_modulators(register: Register) -> None:
    """Register ``gaze_resampler``, the modulator of GazeQwen."""
    register("gaze_resampler", "modulate_gaze.resampler:GazeResampler")


@hookimpl
def register_inputs(register: Register) -> None:
    """Register inputs that show gaze to the bare host: overlay, text, saliency map."""
    register("gaze_overlay", "modulate_gaze.inputs:GazeOverlay")
    register("gaze_text", "modulate_gaze.inputs:GazeText")
    register("gaze_saliency", "modulate_gaze.inputs:GazeSaliency")


@hookimpl
def register_commands(cli: "typer.Typer") -> None:
    """Add ``modulate convert``."""
    from modulate_gaze.commands import convert

    cli.command("convert")(convert)
