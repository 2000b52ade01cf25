"""Parsers of the records that a run writes, and of a plugin's record of verified hosts."""

import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.durability import mutations as mutate
from tests.durability.parsers.parser import Parser, agrees, same


def prediction_seeds() -> list[bytes]:
    row = {
        "id": "t/v/0/1",
        "task": "t",
        "group": "v\u2028",
        "condition": "signal",
        "answer": 1,
        "prediction": 1,
        "correct": True,
        "logits": [0.25, 1.5],
        "active_steps": 3,
        "error": None,
    }
    failed = row | {
        "id": "b",
        "prediction": None,
        "correct": False,
        "logits": [],
        "error": "VideoError: cut off",
    }
    text = row | {
        "id": "c",
        "answer": None,
        "prediction": None,
        "correct": False,
        "logits": [],
        "text": "a r\u00e9d cup",
        "answers": ["red cup", "cup"],
        "token_f1": 0.5,
        "bleu": 0.125,
        "rouge_l": 1.0,
    }
    failed_text = text | {"id": "d", "text": None, "token_f1": 0.0, "error": "DataError: no"}
    return [
        b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
        for rows in ([row], [row, failed, row | {"condition": "none"}], [text, failed_text])
    ]


def mutate_lines(data: bytes, rng: random.Random) -> bytes:
    """Mutate the JSON tree of one line, or the bytes of the whole file."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    if not lines[at] or rng.random() < 0.2:
        return mutate.mutate_bytes(data, rng)
    lines[at] = mutate.mutate_json(lines[at], rng)
    return b"\n".join(lines)[: mutate.LONGEST]


def parse_predictions(data: bytes) -> Any:
    from modulate.evaluation.predictions import parse_predictions

    lines = data.split(b"\n")
    return list(parse_predictions(lines if lines[-1] else lines[:-1], "predictions.jsonl"))


def read_predictions(path: Path) -> Any:
    from modulate.evaluation.predictions import read_predictions

    return [record for records in read_predictions(path).values() for record in records]


def check_predictions(result: Any, data: bytes) -> None:
    trees = [json.loads(line) for line in data.split(b"\n") if line]
    assert len(result) == len(trees) == len({(r.condition, r.id) for r in result})
    by_id = {(tree["condition"], tree["id"]): tree for tree in trees}
    for record in result:
        tree = by_id[record.condition, record.id]
        assert all(
            same(getattr(record, key), tree[key])
            for key in ("task", "group", "answer", "prediction", "correct", "active_steps")
        )
        assert (
            agrees(record.logits, tree["logits"])
            and all(type(logit) is float and abs(logit) <= 1e100 for logit in record.logits)
            and record.error == tree.get("error")
        )
        assert 0 <= record.active_steps <= 2**53
        assert record.text == tree.get("text") and agrees(record.answers, tree.get("answers", []))
        given = record.prediction is not None or record.text is not None
        assert given != bool(record.error)
        assert all(type(text) is str for text in (record.id, record.task, record.group))
        if record.answers:
            for key in ("token_f1", "bleu", "rouge_l"):
                value = getattr(record, key)
                assert agrees(value, tree[key]) and type(value) is float and abs(value - 0.5) < 0.51
            assert record.answer is None and record.prediction is None and not record.logits
        else:
            assert record.correct == (given and record.prediction == record.answer)
            assert record.text is None and (record.answer is None or 0 <= record.answer < 256)
        json.dumps(tree, ensure_ascii=False, allow_nan=False).encode()


def state_seeds() -> list[bytes]:
    whole = {
        "finished": True,
        "made_of": {"data": "ab"},
        "weights": {"model.safetensors": "cd"},
        "steps": 12,
        "seconds": 3.5,
        "failed": {"a": "VideoError: b"},
        "left_out": 1,
        "skipped": {"not_finite": 2},
        "split_steps": 0,
        "unshared_batches": 0,
        "resumed": [3, 9],
    }
    return [
        json.dumps(tree).encode()
        for tree in (whole, {"finished": True, "adopted": "me/weights", "weights": {}, "steps": 0})
    ]


def environment_seeds() -> list[bytes]:
    git = {"commit": "0123456789abcdef", "modified": True}
    return [
        json.dumps(
            {
                "python": "3.11",
                "system": "Linux",
                "machine": "x86_64",
                "versions": {"modulate": "1"},
                "git": value,
            }
        ).encode()
        for value in (git, None)
    ]


def metrics_seeds() -> list[bytes]:
    task = {"accuracy": 0.5, "n": 4, "interval": [0.25, 0.75]}
    condition = {"overall": 0.5, "interval": [0.25, None], "n": 4, "tasks": {"t": task}}
    difference = {
        "difference": -0.5,
        "interval": [-1.0, 0.0],
        "n": 4,
        "mcnemar": {"b": 0, "c": 2, "p": 0.5, "exact": True},
    }
    failed = [{"id": "a", "condition": "none", "error": "VideoError: b"}]
    tree = {
        "split": "test",
        "condition": "signal",
        **condition,
        "controls": {"none": condition},
        "comparisons": {"signal - none": {**difference, "tasks": {"t": difference}}},
    }
    return [
        json.dumps(
            {
                **tree,
                "signal": {"samples": 4, "samples_with_active_signal": 3, "active_steps": 9},
                "failed": failed,
            }
        ).encode()
    ]


def log_seeds() -> list[bytes]:
    return [
        json.dumps(tree).encode()
        for tree in (
            {
                "stage": "joint",
                "step": 3,
                "steps": 9,
                "loss": None,
                "accuracy": 0.5,
                "active": 1.0,
                "lr": 1e-4,
                "skipped": "no_samples",
            },
            {"stage": "joint", "step": 3, "validation_accuracy": 0.75, "gate": 2},
        )
    ]


def header_seeds() -> list[bytes]:
    return [b'{"key": "ab", "sha256": "cd"}']


def lock_seeds() -> list[bytes]:
    return [b'{"pid": 4321, "host": "here", "since": 1700000000.5}']


def training_seeds() -> list[bytes]:
    from modulate.training.trainer_state import TrainerState

    drawn = [3, [*range(8)], None]
    return [
        json.dumps(
            {
                "made_of": {"data": "a"},
                "state": asdict(TrainerState(step=2, failed={"a": "b"})),
                "random": drawn,
                "scaler": {"scale": 65536.0},
            }
        ).encode()
    ]


def verified_seeds() -> list[bytes]:
    hosts = {
        "q": {
            "served_by": "Host",
            "cells": {"test_a": {"outcome": "refused", "reason": "no"}},
        }
    }
    return [
        json.dumps(
            {
                "rows": {"test_a": "a"},
                "versions": {"5.1": {"torch": "2", "device": "cpu", "hosts": hosts}},
                "encodings": {
                    "q": dict.fromkeys(("served_by", "clip", "picture", "times", "together"), "a")
                },
            }
        ).encode()
    ]


def parse_as(schema: Any) -> Callable[[bytes], Any]:
    """Return the parser of a record with this schema."""

    def parse(data: bytes) -> Any:
        from modulate.utils.schema import parse_record

        return parse_record(data, schema, f"{schema.__name__}.json", "record", "")

    return parse


def check_record(result: Any, data: bytes) -> None:
    """Check that a record equals its file, types included, and that its numbers stay finite."""
    tree = json.loads(data)
    json.dumps(tree, ensure_ascii=False, allow_nan=False).encode()
    assert agrees(result.model_dump(exclude_unset=True), tree)
    if type(result).__name__ == "LogLine":
        assert all(math.isfinite(value - -value) for value in result.curves().values())
    if type(result).__name__ == "Owner":
        assert 0 < result.pid < 2**31 and time.localtime(result.since)


COMMON = ("parse_record", "checked", "findings", "unknown_keys", "warn_of_key")
"""Functions that parse records of every schema."""


def schema_parsers() -> list[Parser]:
    """Return one parser for each schema of a record."""
    from modulate.evaluation.finished_conditions import Header
    from modulate.hosts.verified_versions import ContractRecord
    from modulate.runs.records import Environment, LogLine, Metrics, RunState
    from modulate.training.trainer_state import Notes
    from modulate.utils.file_lock import Owner

    strict = COMMON[:3]  # these schemas refuse unknown keys without a search for similar ones
    log = (*strict, "_further", "curves", "_number", "_bounded")
    return [
        _parser("state", "state.json of a run", state_seeds, RunState),
        _parser("environment", "environment.json of a run", environment_seeds, Environment),
        _parser(
            "metrics", "metrics.json of a run", metrics_seeds, Metrics, (*COMMON, "_same_tasks")
        ),
        _parser("log", "a line of a training's log", log_seeds, LogLine, log),
        _parser("finished", "header of finished predictions", header_seeds, Header, strict),
        _parser("lock", "the owner of a locked folder", lock_seeds, Owner, strict),
        _parser("resume", "notes of a training's checkpoint", training_seeds, Notes),
        _parser("verified", "a plugin's record of verified hosts", verified_seeds, ContractRecord),
    ]


def _parser(
    name: str,
    what: str,
    seeds: Callable[[], list[bytes]],
    schema: Any,
    only: tuple[str, ...] = COMMON,
) -> Parser:
    return Parser(
        name=name,
        what=what,
        seeds=seeds,
        parse=parse_as(schema),
        check=check_record,
        modules=("modulate.utils.schema", "modulate.runs.records"),
        mutation=mutate.mutate_json,
        only=only,
    )


def parsers() -> list[Parser]:
    """Return the parsers of records."""
    predictions = Parser(
        name="predictions",
        what="predictions of a run, JSON lines",
        seeds=prediction_seeds,
        parse=parse_predictions,
        check=check_predictions,
        modules=("modulate.evaluation.predictions",),
        mutation=mutate_lines,
        read=read_predictions,
        suffix=".jsonl",
        only=("parse_predictions", "_consistent"),
        same=False,
    )
    return [predictions, *schema_parsers()]
