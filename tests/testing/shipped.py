"""Which shipped components the classes of a test module join to the contract of their kind."""

from modulate import plugins
from modulate.utils.entry_points import OURS

FIXATIONS = (
    "center_x,center_y,start_time_seconds,end_time_seconds\n"
    "0.25,0.75,0.2,0.9\n0.5,0.5,1.1,1.6\n0.8,0.3,2.2,2.9\n0.6,0.1,3.0,3.8\n"
)
HANDS = "time_seconds,x,y\n0.25,0.5,0.5\n0.5,0.55,0.5\n1.5,0.6,0.4\n2.25,0.7,0.35\n3.5,0.2,0.9\n"


def names_of(kind):
    """The shipped components of ``kind``."""
    components = plugins.registry().components.values()
    return {found.name for found in components if found.kind == kind and found.plugin in OURS}


def tried_in(module, attribute="name"):
    """The components that the module's test classes name."""
    classes = [value for name, value in module.items() if name.startswith("Test")]
    return {getattr(cls, attribute) for cls in classes}
