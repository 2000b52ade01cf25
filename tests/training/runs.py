"""Runs of a tiny recipe: what they are trained with, and what they leave."""

import json
import math

import torch
from accelerate.utils import AutocastKwargs

from modulate.config.recipe import load_recipe
from modulate.training import trainer
from modulate.training.processes import accelerator_for

TINY = [
    "data.params.train=2",
    "data.params.val=1",
    "data.params.test=2",
    "data.params.max_per_split=4",
    "sampling.max_frames=2",
    "training.batch_size=2",
    "training.stages.0.epochs=2",
    "training.stages.1.epochs=1",
    "training.checkpoint_every=1",
    "evaluation.conditions=[blank,host]",
    "evaluation.bootstrap=100",
]
STEPS = 6
"""Optimizer steps of the recipe: four in its first stage, two in its second."""


def recipe_for(world, *overrides):
    return load_recipe("gazeqwen_tiny", [f"data.params.root={world}/tabletop", *TINY, *overrides])


def files_of(run, *but):
    """Return the contents of a run's files by name, without times, checkpoints and ``but``."""
    found = {
        p.relative_to(run.folder).as_posix(): p.read_bytes()
        for p in run.folder.rglob("*")
        if p.is_file()
    }
    account = {
        k: v
        for k, v in json.loads(found.pop("state.json")).items()
        if k not in ("seconds", "resumed")
    }
    kept = {
        k: v
        for k, v in found.items()
        if not k.startswith("checkpoint/") and k not in ("environment.json", ".lock", *but)
    }
    return kept | {"state.json": account}


def stopping(stop, *steps):
    """Return a listener that asks for a stop after these steps of a stage, by default all."""

    def listen(progress):
        if not steps or progress.step in steps:
            stop.request(15)

    return listen


def spoil(pipeline, bad):
    """Let the host's logits be NaN in the training forwards whose number, from 1, is ``bad``."""
    count = iter(range(1, 1000))

    def hook(module, args, output):
        return output * math.nan if torch.is_grad_enabled() and bad(next(count)) else output

    return pipeline.model.get_submodule("lm_head").register_forward_hook(hook)


def scaling(monkeypatch, **settings):
    """Let trainings scale their loss as fp16 does, in fp32 on the CPU."""

    def make(recipe, device, folder):
        accelerator = accelerator_for(recipe, device, folder)
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu", **settings)
        accelerator.autocast_handler = AutocastKwargs(enabled=False)
        monkeypatch.setattr(type(accelerator), "mixed_precision", "fp16")
        return accelerator

    monkeypatch.setattr(trainer, "accelerator_for", make)
