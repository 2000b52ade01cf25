"""Figures of inference: cost of attaching and conditioning, for a forward and for 64 tokens."""

import copy
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.speed.bench import Bench
from benchmarks.speed.side_by_side import side_by_side
from benchmarks.speed.timing import compared, interleaved
from modulate.hosts.hooks import Hook
from modulate.inference.batching import LAST_LOGITS
from modulate.modulation.clip_inputs import Rows

Act = Callable[[Any], Any]


def forward(bench: Bench) -> dict[str, Any]:
    """Compare forwards of the attached and the conditioned host with the bare host.

    One forward on one clip, with logits at the last position. The control is a second bare host.
    """
    act = torch.inference_mode()(lambda model: model(**bench.inputs, **LAST_LOGITS))

    def condition() -> None:
        bench.modulation.latents(bench.rows[0])

    plain, hooked, full, again = side_by_side(
        [act, attached(bench, act, []), attached(bench, act, bench.rows), act],
        hosts(bench, 4),
        4 * bench.repeats,
    )
    alone = interleaved([condition], bench.repeats)[0]
    seconds = statistics.median(cost.cpu for cost in alone)
    own = ours(bench, act, [])
    all_of_it = ours(bench, act, bench.rows)
    return {
        "bare": compared(again, plain),
        "attached": {**compared(hooked, plain), "note": f"ours by itself {1000 * own:.1f} ms"},
        "conditioned": {
            **compared(full, plain),
            "note": (
                f"ours by itself {1000 * all_of_it:.0f} ms, of which `condition()`"
                f" {1000 * seconds:.0f} ms"
            ),
        },
    }


def generate_greedily(bench: Bench, model: Any) -> None:
    """Generate 64 tokens, whatever they are."""
    model.generation_config.eos_token_id = None
    model.generate(**bench.inputs, max_new_tokens=64, do_sample=False, pad_token_id=0)


def generate(bench: Bench) -> dict[str, Any]:
    """64 tokens, greedily, with and without conditioning."""
    act = partial(generate_greedily, bench)
    full, plain = side_by_side(
        [attached(bench, act, bench.rows), act], hosts(bench, 2), 8 * bench.repeats
    )
    return {
        "generate": {
            **compared(full, plain),
            "note": f"ours by itself {1000 * ours(bench, act, bench.rows):.0f} ms",
        }
    }


def hosts(bench: Bench, count: int) -> list[nn.Module]:
    """Return the bench host and equal ones, ``n`` in all."""
    return [bench.pipeline.model, *(copy.deepcopy(bench.pipeline.model) for _ in range(count - 1))]


def attached(bench: Bench, act: Act, rows: Rows) -> Act:
    """Return ``act`` with attaching, conditioning by ``rows`` if there are any, and detaching
    around it.
    """

    def call(model: nn.Module) -> None:
        with bench.modulation.attached(model) as attachment, attachment.maybe_condition(rows):
            act(model)

    return call


def ours(bench: Bench, act: Act, rows: Rows) -> float:
    """Return the seconds of the processor that attaching, conditioning by ``rows``, our hooks
    during ``act`` and detaching take by themselves; median of the repeats.
    """

    def once() -> float:
        spent = [0.0]
        call = Hook.__call__

        def timed(hook: Hook, *args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return call(hook, *args, **kwargs)
            finally:
                spent[0] += time.process_time() - start

        start = time.process_time()
        with (
            bench.modulation.attached(bench.pipeline.model) as attachment,
            attachment.maybe_condition(rows),
        ):
            spent[0] += time.process_time() - start
            Hook.__call__ = timed  # type: ignore[method-assign]
            try:
                act(bench.pipeline.model)
            finally:
                Hook.__call__ = call  # type: ignore[method-assign]
            start = time.process_time()
        return spent[0] + time.process_time() - start

    return statistics.median(once() for _ in range(bench.repeats))
