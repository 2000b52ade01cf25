"""A signal encoder that lights up the visual token nearest to the gaze.

Registration imports no torch.
"""

from modulate import hookimpl


@hookimpl
def register_signal_encoders(register):
    register("pointer", "modulate_pointer.encoder:Pointer")
