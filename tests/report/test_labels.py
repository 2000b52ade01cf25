"""Names of tasks, runs, seeds and values."""

from modulate.interfaces.components import Reference
from modulate.report.labels import (
    named_seeds,
    ordered_tasks,
    seeds_text,
    short_value,
    side_name,
    slug,
    task_label,
)
from modulate.report.runs import RunGroup


def test_tasks_follow_the_order_of_their_labels():
    reference = Reference(labels={"b": "B", "a": "A"})
    assert ordered_tasks(["x", "a", "b"], reference) == ["b", "a", "x"]
    assert (task_label("a", reference), task_label("x", reference)) == ("A", "x")


def test_seeds_agree_in_number():
    assert (seeds_text((0, 1)), named_seeds((0,)), named_seeds((0, 1))) == (
        "0, 1",
        "seed 0",
        "seeds 0, 1",
    )


def test_sides_of_a_comparison_read_as_nouns():
    assert side_name("shuffled") == "the shuffled control"
    assert side_name("LoRA-only run") == "the LoRA-only run"


def test_long_values_are_cut_and_missing_ones_named():
    assert short_value("(absent)") == "absent" and short_value(4) == "4"
    assert len(short_value("x" * 500)) == 121


def test_slugs_hold_only_characters_that_are_safe_everywhere():
    assert slug(RunGroup("runs/a é_1.b", ())) == "a--_1.b"
