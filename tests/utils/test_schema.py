"""Schemas of files: errors name the key, the value and what is allowed; unknown keys warn."""

import json
from typing import Literal

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from modulate.errors import DataError
from modulate.utils.schema import (
    LARGEST,
    MAX_FINDINGS,
    SLACK,
    Count,
    Difference,
    Flag,
    Real,
    Record,
    Share,
    Text,
    parse_record,
    read_record,
    unknown_keys,
)


class Inner(Record):
    share: Share


class Whole(Record):
    name: Text
    parts: list[Inner] = Field(default_factory=list)
    by_name: dict[str, Inner] = Field(default_factory=dict)


class Further(Record):
    further = True
    name: Text


def parsed(tree, model=Whole):
    return parse_record(
        json.dumps(tree).encode(), model, "notes.json", "notes of a run", "Write them anew."
    )


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Count, [0, 2**53], [-1, 2**53 + 1, "1", 1.0]),
        (
            Real,
            [LARGEST, -LARGEST, 0.5],
            [1.01 * LARGEST, -1.01 * LARGEST, float("inf"), float("nan"), "1"],
        ),
        (Share, [0.0, 1.0, -SLACK, 1 + SLACK], [-2 * SLACK, 1 + 2 * SLACK]),
        (Difference, [-1.0, 1.0, -1 - SLACK, 1 + SLACK], [-1 - 2 * SLACK, 1 + 2 * SLACK]),
        (Flag, [True], [1, "true"]),
        (Text, ["1"], [1]),
    ],
)
def test_values_have_a_type_and_a_range(kind, good, bad):
    for value in good:
        assert TypeAdapter(kind).validate_python(value) == value
    for value in bad:
        with pytest.raises(ValidationError):
            TypeAdapter(kind).validate_python(value)


def test_an_error_names_file_key_and_value_and_says_what_to_do():
    with pytest.raises(
        DataError,
        match=(
            r"^notes\.json: invalid notes of a run: name: Input should be a valid string,"
            r" got 3\. Write them anew\.$"
        ),
    ):
        parsed({"name": 3})
    with pytest.raises(DataError, match=r"invalid notes of a run: the whole: .*got \[\]"):
        parsed([])
    with pytest.raises(DataError, match=r"parts\.1\.share: .* less than or equal to 1"):
        parsed({"name": "a", "parts": [{"share": 0.5}, {"share": 2.0}]})
    with pytest.raises(DataError, match=r"notes\.json.* Write them anew\."):
        parse_record(b"{", Whole, "notes.json", "notes", "Write them anew.")


@pytest.mark.parametrize(
    ("wrong", "more"),
    [
        (MAX_FINDINGS - 1, ""),
        (MAX_FINDINGS, ""),
        (MAX_FINDINGS + 1, "; and 1 more"),
        (9, "; and 6 more"),
    ],
)
def test_the_first_three_findings_are_listed_and_the_others_counted(wrong, more):
    with pytest.raises(DataError) as caught:
        parsed({"name": "a", "parts": [{"share": 2.0}] * wrong})
    text = str(caught.value)
    assert text.count("got 2.0") == min(wrong, 3)
    assert text.endswith(f"got 2.0{more}. Write them anew.")


def test_long_keys_and_reasons_are_cut():
    class Wordy(Record):
        kind: Literal["a" * 500]

    with pytest.raises(DataError) as caught:
        parse_record(json.dumps({"kind": "b"}).encode(), Wordy, "x", "y", "z")
    assert len(str(caught.value)) < 300
    with pytest.raises(DataError) as caught:
        parsed({"name": "a", "by_name": {"k" * 500: {"share": 2.0}}})
    assert "k" * 81 not in str(caught.value)


def test_valid_records_are_returned_with_warnings_of_unknown_keys():
    tree = {
        "name": "a",
        "parts": [{"share": 1.0}, {"share": 0.5, "shares": 1}],
        "by_name": {"x": {"share": 0.0, "color": 2}},
    }
    with pytest.warns(UserWarning) as recorded:
        record = parsed(tree)
    assert [part.share for part in record.parts] == [1.0, 0.5]
    texts = [str(one.message) for one in recorded]
    assert [text.partition(" is ignored")[0] for text in texts] == [
        "notes.json: the key 'parts.1.shares'",
        "notes.json: the key 'by_name.x.color'",
    ]
    assert "share" in texts[0].partition("have written it.")[2]


def test_records_that_hold_further_keys_by_design_warn_of_none():
    record = parsed({"name": "a", "more": 1}, Further)
    assert record.model_extra == {"more": 1} and list(unknown_keys(record)) == []
    whole = Whole.model_validate({"name": "a", "nme": 1})
    assert list(unknown_keys([whole], "at.")) == [("at.0.", "nme", ["name", "parts", "by_name"])]


def test_a_missing_file_is_none_and_invalid_json_is_refused(tmp_path):
    path = tmp_path / "notes.json"
    assert read_record(path, Whole, "notes", "Write them anew.") is None
    path.write_text('{"name": "a"}')
    assert read_record(path, Whole, "notes", "Write them anew.").name == "a"
    path.write_text("{")
    with pytest.raises(DataError, match=r"notes\.json.* Write them anew\."):
        read_record(path, Whole, "notes", "Write them anew.")
    path.write_text('{"name": 1}')
    with pytest.raises(DataError, match=r"notes\.json: invalid notes of a run: name"):
        read_record(path, Whole, "notes of a run", "Write them anew.")
