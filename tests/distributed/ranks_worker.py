"""What test_distributed.py lets every process of a real launch do: one scenario after the other.

Each process notes what came of it.
"""

import gc
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from modulate.utils.interrupts import StopRequest

TINY = [
    "data.params.train=2",
    "data.params.val=1",
    "data.params.test=2",
    "data.params.max_per_split=4",
    "sampling.max_frames=2",
    "training.batch_size=3",
    "training.stages.0.epochs=1",
    "training.stages.1.epochs=1",
    "evaluation.conditions=[blank,host]",
    "evaluation.batch_size=3",
    "evaluation.bootstrap=100",
]
"""Four samples in batches of three and one: in every second step the first of two processes has
nothing to do.
"""

TROUBLED = [
    "name=troubled",
    "training.batch_size=4",
    "training.validate_every=null",
    "evaluation.max_failed_share=0.5",
]


def recipe_for(world, *overrides):
    from modulate.config.recipe import load_recipe

    return load_recipe("gazeqwen_tiny", [f"data.params.root={world}/tabletop", *TINY, *overrides])


def without(pipeline, bad):
    """Let the sample ``bad`` fail."""
    from modulate.errors import DataError

    prepare = pipeline.prepare

    def broken(sample, view="own", training=False):
        if sample.id == bad:
            raise DataError(f"Sample {sample.id}: broken.")
        return prepare(sample, view, training)

    pipeline.prepare = broken


class Scenarios:
    def __init__(self, world, processes):
        from modulate.inference.pipeline import Pipeline

        self.world = world
        self.processes = processes
        self.pipeline = Pipeline(recipe_for(world), world / f"cache{processes.rank}")
        self.bad = (world / "bad.txt").read_text()

    def begin(self, *overrides):
        import copy

        from modulate.runs.run import Run

        twin = copy.copy(self.pipeline)
        twin.recipe = recipe_for(self.world, *overrides)
        return Run.create(twin.recipe, self.world / "duo"), twin

    def stopped(self):
        """Process 1 alone is asked to stop; the training is then resumed and evaluated."""
        from modulate.errors import Interrupted
        from modulate.evaluation.evaluate import evaluate
        from modulate.training.trainer import train

        run, pipeline = self.begin()
        stop = StopRequest()
        steps = []

        def listen(progress):
            steps.append([progress.stage, progress.step])
            if self.processes.rank == 1:
                stop.request(15)

        try:
            train(run, pipeline, listen, stop=stop)
        except Interrupted as error:
            steps.append(str(error))
        modulation = train(run, pipeline, lambda p: steps.append([p.stage, p.step]))
        evaluate(run, pipeline, modulation)
        return steps

    def judged(self):
        """The weights that a single process trained are evaluated."""
        from modulate.evaluation.evaluate import evaluate
        from modulate.modulation.module import Modulation

        run, pipeline = self.begin("name=judged")
        told = []
        evaluate(
            run,
            pipeline,
            Modulation.from_pretrained(self.world / "solo" / "gazeqwen_tiny" / "modulation"),
            advance=lambda *args: told.append(args),
        )
        return told

    def troubled(self):
        """A sample fails, and process 1 can do one sample at a time only."""
        from modulate.training.trainer import train

        run, pipeline = self.begin(*TROUBLED)
        without(pipeline, self.bad)

        def small(module, args):
            if self.processes.rank == 1 and args[0].shape[0] > 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        handle = pipeline.model.lm_head.register_forward_pre_hook(small)
        try:
            train(run, pipeline)
        finally:
            handle.remove()

    def spoiled(self):
        """Process 1 computes NaN in its first forward."""
        from modulate.training.trainer import train

        run, pipeline = self.begin(
            "name=spoiled", "training.validate_every=null", "training.batch_size=4"
        )
        seen = []

        def spoil(module, args, output):
            seen.append(1)
            return output * float("nan") if self.processes.rank == 1 and len(seen) == 1 else None

        handle = pipeline.model.lm_head.register_forward_hook(spoil)
        try:
            train(run, pipeline)
        finally:
            handle.remove()

    def broken(self):
        """Process 1 meets a defect."""
        from modulate.training.trainer import train

        run, pipeline = self.begin("name=broken")
        if self.processes.rank == 1:
            pipeline.prepare = lambda *args, **kwargs: {}["a defect"]
        train(run, pipeline)

    def held(self):
        """The run is another's; process 0 finds out."""
        self.begin("name=held")

    def late(self):
        """Process 1 takes longer than process 0 has patience."""
        processes = replace(self.processes, timeout=0.2)
        with processes.fail_together():
            if processes.rank == 1:
                time.sleep(0.6)
            processes.barrier()
            processes.barrier()

    def crowded(self):
        """More processes than a step has samples."""
        from modulate.training.trainer import train

        train(*self.begin("name=crowded", "training.batch_size=1"))

    def sharded(self):
        """A host is divided; modulation and gradients are as without, and after detaching it is the
        host it was.
        """
        from modulate.hosts.fsdp import full_tensor, shard
        from modulate.modulation.attachment import ModulatedHost
        from tests.tiny import CLIP, fresh, inputs, our_hooks, qwen

        def learn(model):
            modulation = fresh(model, lora=True)
            torch.manual_seed(1)
            for projection in modulation.out:
                torch.nn.init.normal_(projection.weight, std=0.5)
            host = ModulatedHost(modulation, model)
            host([[CLIP], [CLIP]], **inputs(seed=self.processes.rank)).logits[
                :, -1
            ].square().sum().backward()
            host.attachment.detach()
            return {name: p.grad for name, p in modulation.named_parameters()}

        plain = qwen()
        model = qwen()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        modules = [id(m) for m in model.modules()]
        shard(model, self.processes)
        divided = [name for name, p in model.named_parameters() if hasattr(p, "full_tensor")]
        held = sum(
            p.to_local().numel() if hasattr(p, "full_tensor") else 0 for p in model.parameters()
        )
        expected = learn(plain)
        found = learn(model)
        again = {name: full_tensor(value) for name, value in model.state_dict().items()}
        return {
            "divided": sorted({name.split(".")[2] for name in divided}),
            "share": held / sum(before[name].numel() for name in divided),
            "gradients": max(
                float((g - found[n]).abs().max() / g.abs().max())
                for n, g in expected.items()
                if g is not None and g.abs().max() > 0
            ),
            "size": max(float(g.abs().max()) for g in expected.values() if g is not None),
            "hooks": len(our_hooks(model)),
            "same": (
                list(before) == list(again)
                and all(torch.equal(before[n], again[n]) for n in before)
            ),
            "modules": modules == [id(m) for m in model.modules()],
        }

    def command(self):
        """The command line, on a host that is divided, with layers that are recomputed."""
        from modulate.cli import main

        # as if accelerate's configuration had asked for it; torch joins processes once only
        self.processes.shards = True
        overrides = [
            f"data.params.root={self.world}/tabletop",
            *TINY,
            "training.gradient_checkpointing=true",
        ]
        try:
            main(
                [
                    "train",
                    "gazeqwen_tiny",
                    *overrides,
                    "--runs",
                    str(self.world / "fsdp"),
                    "--cache",
                    str(self.world / f"cache{self.processes.rank}"),
                ]
            )
        except SystemExit as end:
            return end.code


def run(world):
    from modulate.distributed.launch import join

    torch.set_num_threads(1)
    here = join("cpu")
    scenarios = Scenarios(world, here)
    gc.freeze()  # accelerate collects garbage before every stage
    for name in sys.argv[2:] or (
        "stopped",
        "judged",
        "troubled",
        "spoiled",
        "broken",
        "held",
        "late",
        "crowded",
        "sharded",
        "command",
    ):
        note = {}
        since = time.monotonic()
        try:
            note["found"] = getattr(scenarios, name)()
        except BaseException as error:
            note |= {"error": type(error).__name__, "text": str(error)}
        note["seconds"] = time.monotonic() - since
        (world / f"{name}-{here.rank}.json").write_text(json.dumps(note))


if __name__ == "__main__":
    run(Path(sys.argv[1]))
