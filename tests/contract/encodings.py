"""How a family's processor is shown clips and pictures, and what it tells of time: measured."""

from dataclasses import replace

import numpy as np
import torch

from modulate.errors import HostError
from modulate.hosts.host import understand
from modulate.hosts.prompt_grids import Shown
from modulate.interfaces.frames import Frames
from modulate.interfaces.messages import Picture, VideoClip, user_turn
from modulate_hosts.contract.families import FAMILIES
from tests.contract import test_unlisted
from tests.contract.processors import PROCESSORS

BUILD = {family.name: family.build for family in FAMILIES}


def built(name):
    """Return a tiny host of a family in the contract or in `test_unlisted`."""
    torch.manual_seed(0)
    build = BUILD.get(name) or getattr(test_unlisted, name)
    return build().eval().requires_grad_(False)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def encoding_of(name):
    """Return the record of a family for the page of hosts."""
    host = understand(built(name))
    processor = PROCESSORS[name]()
    clip = VideoClip(Frames(noise(4, 64, 96), (0.0, 2.0, 4.0, 6.0)), (0.0, 60.0))
    later = replace(clip, frames=replace(clip.frames, times=(10.0, 20.0, 30.0, 40.0)))
    picture = Picture(noise(64, 96, seed=1))
    before, after = (host.encode(processor, user_turn(shown, "Where")) for shown in (clip, later))
    changed = [
        key for key, value in before.inputs.items() if not torch.equal(value, after.inputs[key])
    ]
    times = "in the positions" if changed else "no"
    if "input_ids" in changed:
        times = "in the prompt"
    try:
        host.encode(processor, user_turn(picture, clip, "Where"))
        together = "yes"
    except HostError:
        together = "no"
    as_pictures = Shown.of(host, processor, clip).modality == "image"
    as_clip = Shown.of(host, processor, picture).modality == "video"
    return {
        "served_by": type(host).__name__,
        "clip": "one picture a frame" if as_pictures else "video",
        "picture": "video of one frame" if as_clip else "picture",
        "times": times,
        "together": together,
    }
