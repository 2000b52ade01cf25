"""StreamGaze (arXiv 2512.01707) and every data set that is laid out on disk as it is. Importing this package imports no torch."""

from modulate.hookspecs import Register, hookimpl


@hookimpl
def register_datasets(register: Register) -> None:
    """Register the benchmark's reader."""
    register("streamgaze", "modulate_streamgaze.dataset:StreamGaze")
