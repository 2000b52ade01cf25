"""Untrusted YAML and JSON are read as PyYAML and json read them; excesses are refused quickly."""

import json
import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from modulate.errors import DataError, MissingFileError, RecipeError
from modulate.utils import safe_load as parse
from modulate.utils.safe_load import YAML_DEPTH, YAML_NODES, parse_yaml, read_json, read_yaml

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.dates()
)
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(TREES)
def test_what_pyyaml_writes_is_read_as_pyyaml_reads_it(tree):
    text = yaml.safe_dump(tree, allow_unicode=True)
    assert parse_yaml(text, "r") == yaml.safe_load(text)


def test_aliases_and_merges_within_the_limits_work():
    text = "base: &b {lr: 1.0, steps: [1, 2]}\nown: {<<: *b, lr: 2.0}\nagain: *b\n"
    assert parse_yaml(text, "r") == {
        "base": {"lr": 1.0, "steps": [1, 2]},
        "own": {"lr": 2.0, "steps": [1, 2]},
        "again": {"lr": 1.0, "steps": [1, 2]},
    }


def laughs(levels=30, width=9):
    """Return "billion laughs": each list contains the previous one nine times."""
    return "a0: &a0 [lol]\n" + "".join(
        f"a{index}: &a{index} [{', '.join([f'*a{index - 1}'] * width)}]\n"
        for index in range(1, levels)
    )


HOSTILE = {
    "billion laughs": (laughs(), rf"more than {YAML_NODES} values after expanding aliases"),
    "billion laughs by merging": (
        "a0: &a0 {x: 1}\n"
        + "".join(
            f"a{index}: &a{index} {{<<: [{', '.join([f'*a{index - 1}'] * 9)}]}}\n"
            for index in range(1, 30)
        ),
        "after expanding aliases",
    ),
    "an alias within itself": (
        "a: &a [*a]",
        r"line 1: the alias \*a refers to a value that contains it",
    ),
    "a chain of aliases that gets deep": (
        "a0: &a0 [1]\n"
        + "".join(f"a{index}: &a{index} [*a{index - 1}]\n" for index in range(1, 60)),
        f"deeper than {YAML_DEPTH} levels",
    ),
    "deep mappings": (
        "{a: " * 5000 + "1" + "}" * 5000,
        f"line 1: nested deeper than {YAML_DEPTH} levels",
    ),
    "deep lists": ("[" * 100_000, f"deeper than {YAML_DEPTH} levels"),
    "deep by indentation": (
        "".join(" " * index + "a:\n" for index in range(500)),
        f"line {YAML_DEPTH}: nested deeper",
    ),
    "deep by dashes": ("- " * 5000 + "1", f"deeper than {YAML_DEPTH} levels"),
    "many values": (
        "- 1\n" * (YAML_NODES + 1),
        f"line {YAML_NODES}: more than {YAML_NODES} values",
    ),
    "a long file": ("a: " + "x" * parse.YAML_BYTES, r"is larger than 256 KiB"),
    "a long number": ("seed: 0x" + "f" * 100, "a number of more than 64 characters"),
    "a long number with colons": (
        "seed: " + ":".join(["59"] * 100),
        "a number of more than 64 characters",
    ),
    "a key twice": (
        "name: a\nseed: 1\nname: b\n",
        r"line 3: the key 'name' appears twice, first in line 1",
    ),
    "a key twice in a section": (
        "host:\n  name: a\n  name: b\n",
        r"line 3: the key 'name' appears twice, first in line 2",
    ),
    "a Python object": (
        "a: !!python/object/apply:os.system [echo]",
        "is not valid YAML: could not determine a constructor",
    ),
    "a Python name": ("a: !!python/name:os.system", "is not valid YAML"),
    "an impossible date": ("a: 2020-99-99", "is not valid YAML"),
    "a number that is none": ("a: !!int x", "is not valid YAML"),
    "a key that is a list": ("{[1]: 2}", "is not valid YAML"),
    "two documents": ("a: 1\n---\nb: 2\n", "is not valid YAML"),
    "control characters": ("a: \x00", "is not valid YAML"),
    "half a character": (
        'a: 1\nb: "\\ud800"',
        "line 2: half of a surrogate pair, which UTF-8 cannot encode",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_yaml_is_refused_quickly_and_by_name(name, tmp_path):
    text, message = HOSTILE[name]
    path = tmp_path / "r.yaml"
    path.write_text(text)
    start = time.process_time()
    with pytest.raises(RecipeError, match=message) as caught:
        read_yaml(path)
    assert time.process_time() - start < 3  # the slowest takes a third of a second
    assert str(path) in str(caught.value) and len(str(caught.value)) < 1000


def test_bytes_that_are_not_text_are_refused(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"a: \xff")
    with pytest.raises(
        RecipeError, match=r"r\.yaml is not valid YAML: it is not UTF-8 text .* byte 3"
    ):
        read_yaml(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, '{"a":' * 200_000, json.dumps([[[]]]).replace("[]", "[" * 70 + "]" * 70)],
)
def test_deep_json_is_refused(text, tmp_path):
    (tmp_path / "q.json").write_text(text)
    with pytest.raises(
        DataError, match=r"q\.json is (nested deeper than 64 levels|not valid JSON)"
    ):
        read_json(tmp_path / "q.json")


def test_json_up_to_the_limit_is_read(tmp_path):
    (tmp_path / "q.json").write_text("[" * 64 + "1" + "]" * 64)
    assert str(read_json(tmp_path / "q.json")).count("[") == 64


def test_large_json_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "q.json").open("wb") as file:
        file.truncate(parse.JSON_BYTES + 1)  # a sparse file: takes no space
    with pytest.raises(DataError, match=r"q\.json has 67108865 bytes; at most 64 MiB are read"):
        read_json(tmp_path / "q.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1, "b": 2, "b": 3}]', "the key 'b' appears twice in one object"),
        ('{"' + "k" * 500 + '": 1, "' + "k" * 500 + '": 2}', "the key 'kkk.*… appears twice"),
        ("[NaN]", "NaN is not a JSON number"),
        ("[-Infinity]", "-Infinity is not a JSON number"),
        ("[1e999]", "the number 1e999 is too large"),
        (r'["\ud800"]', "surrogates not allowed"),
        (r'{"\udfff": 1}', "surrogates not allowed"),
    ],
)
def test_json_that_other_readers_accept_silently_is_refused(text, message, tmp_path):
    (tmp_path / "q.json").write_text(text)
    with pytest.raises(DataError, match=rf"q\.json is not valid JSON: .*{message}") as caught:
        read_json(tmp_path / "q.json")
    assert len(str(caught.value)) < 400


def test_surrogate_pairs_are_read(tmp_path):
    (tmp_path / "q.json").write_text(r'["\ud83d\ude00", 1e300, "\\ud800"]')
    assert read_json(tmp_path / "q.json") == ["\U0001f600", 1e300, "\\ud800"]


def test_a_repeated_key_among_many_is_refused_in_linear_time(tmp_path):
    (tmp_path / "q.json").write_text(
        "{" + ",".join(f'"{index}": 0' for index in range(100_000)) + ',"99999": 1}'
    )
    start = time.process_time()
    with pytest.raises(DataError, match="'99999' appears twice"):
        read_json(tmp_path / "q.json")
    assert time.process_time() - start < 3


def test_invalid_or_missing_json_is_refused(tmp_path):
    (tmp_path / "q.json").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"q\.json is not valid JSON"):
        read_json(tmp_path / "q.json")
    (tmp_path / "q.json").write_text("1" * 5000)
    with pytest.raises(DataError, match=r"q\.json is not valid JSON"):
        read_json(tmp_path / "q.json")
    with pytest.raises(MissingFileError, match=r"Question file .*none\.json does not exist"):
        read_json(tmp_path / "none.json", "Question file")
    with pytest.raises(DataError, match=r"Question file .* cannot be read: Is a directory"):
        read_json(tmp_path, "Question file")


def is_refused(text):
    try:
        parse_yaml(text, "r")
    except RecipeError as error:
        assert f"nested deeper than {YAML_DEPTH} levels" in str(error)
        return True
    return False


@pytest.mark.parametrize(
    "named",
    [
        "1",
        "[1]",
        "[[[[1]]]]",
        "{deep: [[[1]]], flat: 1}",
        "{flat: 1, deep: [[[1]]]}",
        "[[[1]], [1], 1]",
        "{a: {b: [1, [2]]}, c: []}",
    ],
)
def test_an_alias_is_as_deep_as_its_expansion(named):
    before = "x: [[[[[[1]]]]]]\n"
    seen = []
    for around in range(YAML_DEPTH + 2):
        opened = "[" * around
        closed = "]" * around
        alias = is_refused(f"{before}a: &a {named}\nb: {opened}*a{closed}\n")
        again = is_refused(f"{before}a: &a {named}\nb: &b [*a, 1]\nc: {opened}*b{closed}\n")
        assert alias == is_refused(f"{before}a: {named}\nb: {opened}{named}{closed}\n")
        assert again == is_refused(f"{before}a: {named}\nc: {opened}[{named}, 1]{closed}\n")
        seen.append(alias)
    assert set(seen) == {True, False}
