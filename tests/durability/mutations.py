"""Mutations of valid inputs, for the fuzzer: of bytes, of JSON trees, and inside the containers of
weights. Deterministic in the generator given.
"""

import json
import random
import re
import struct
import zipfile
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

Mutation = Callable[[bytes, random.Random], bytes]

NUMBERS = (
    b"0",
    b"-0",
    b"1",
    b"-1",
    b"0.5",
    b"1.5",
    b"-0.6",
    b"1e308",
    b"-1e308",
    b"1e309",
    b"1e-320",
    b"nan",
    b"NaN",
    b"inf",
    b"-Infinity",
    b"640",
    b"1.7e9",
    b"9" * 30,
    b"1_0",
    b"0x10",
    b"00:12",
    b"99:99",
    b"01:02:03",
    b"2147483648",
    b"18446744073709551616",
    b"1e7",
    b"9999999.9",
    "\u0661".encode(),
)
TOKENS = (
    b",",
    b'"',
    b'""',
    b"\n",
    b"\r",
    b"\r\n",
    b"\x00",
    b"\xff",
    b"\xef\xbb\xbf",
    b";",
    b"\t",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b"- ",
    b"&a ",
    b"*a",
    b"<<: ",
    b"!!",
    b"|",
    b"'",
    b"..",
    b"/",
    b"\\",
    b"../",
    b"null",
    b"true",
    b"~",
    b"\\ud800",
    b"\\u0000",
    "\u2028".encode(),
    "\U0001f600".encode(),
    b"=",
    b".",
    b"#",
    b"__class__",
    b"A",
    b"E",
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    7,
    0.5,
    -0.5,
    1e7,
    1e308,
    float("nan"),
    float("inf"),
    10**9,
    2**31,
    2**63,
    10**30,
    "",
    " ",
    "A",
    "a",
    "H",
    "no",
    "x" * 200,
    "00:12",
    "99:99",
    "1:02:03",
    "7.5",
    "..",
    "../x.mp4",
    "/etc/passwd",
    "a.mp4",
    "\0",
    "\ud800",
    "train",
    "float32",
    "gaze",
    [],
    {},
    [[]],
    [None],
    {"a": 1},
    ["A. x", "B. y"],
    [0, 1],
    [1, 0],
    ["lora"],
    "package:modulate_tabletop/host",
)
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
LONGEST = 1 << 14


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Change a text or a binary in one to four places: bits, spans, numbers, tokens."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        at = rng.randrange(len(found) + 1)
        kind = rng.randrange(9)
        length = min(len(found) - at, 1 << rng.randrange(7))
        if kind == 0 and at < len(found):
            found[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del found[at : at + length]
        elif kind == 2:
            found[at:at] = rng.choice(TOKENS)
        elif kind == 3:
            found[at:at] = found[at : at + length]
        elif kind == 4 and at < len(found):
            found[at] = rng.randrange(256)
        elif kind == 5 and found:
            other = rng.randrange(len(found))
            found[at : at + length] = found[other : other + length]
        elif kind == 6 and rng.random() < 0.2:
            del found[at:]
        elif (numbers := list(_NUMBER.finditer(found)))[:1]:
            span = rng.choice(numbers).span()
            found[span[0] : span[1]] = rng.choice(NUMBERS)
    return bytes(found[:LONGEST])


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Change a JSON tree in one to three places: values, keys, items; one time in eight its bytes
    instead.
    """
    if rng.random() < 0.125:
        return mutate_bytes(data, rng)
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return mutate_bytes(data, rng)
    for _ in range(rng.choice((1, 1, 2, 3))):
        tree = _changed(tree, rng)
    return json.dumps(tree).encode()[:LONGEST]


def _changed(tree: Any, rng: random.Random) -> Any:
    places = _places(tree)
    if not places:
        return rng.choice(VALUES)
    holder, key = rng.choice(places)
    kind = rng.randrange(8)
    if kind < 3:
        holder[key] = _fresh(rng)
    elif kind == 3:
        del holder[key]
    elif kind == 4:
        other, name = rng.choice(places)
        holder[key] = json.loads(json.dumps(other[name]))
    elif kind == 5 and isinstance(holder, dict):
        holder[rng.choice((key[:-1], key + "x", "", key.upper(), str(rng.choice(places)[1])))] = (
            holder.pop(key)
        )
    elif kind == 6 and isinstance(holder, list):
        holder.insert(key, holder[key])
    elif isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
        holder[key] = rng.choice(
            (holder[key] + 1, -holder[key], holder[key] * 2, holder[key] / 3, str(holder[key]))
        )
    elif isinstance(holder[key], str):
        holder[key] = mutate_bytes(holder[key].encode(errors="replace"), rng).decode(
            errors="replace"
        )
    else:
        holder[key] = [holder[key]]
    return tree


def _fresh(rng: random.Random) -> Any:
    return json.loads(
        json.dumps(rng.choice(VALUES))
    )  # a copy: a list put in twice would change twice


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a tree; not below 50 levels."""
    found = []
    level = [tree] if isinstance(tree, dict | list) else []
    for _ in range(50):
        inner = [
            (holder, key)
            for holder in level
            for key in (holder if isinstance(holder, dict) else range(len(holder)))
        ]
        found += inner
        level = [holder[key] for holder, key in inner if isinstance(holder[key], dict | list)]
    return found


def mutate_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Change a safetensors file: its header's JSON, the length before it, or the numbers behind it;
    one time in eight its bytes.
    """
    size = int.from_bytes(data[:8], "little")
    kind = rng.randrange(8)
    if kind == 0 or not 8 + size <= len(data):
        return mutate_bytes(data, rng)
    header = data[8 : 8 + size]
    numbers = data[8 + size :]
    if kind == 1:
        return (
            struct.pack(
                "<Q",
                rng.choice((0, 1, size + 1, size - 1, size * 2, 2**31, 2**40, 2**63, 2**64 - 1))
                % 2**64,
            )
            + header
            + numbers
        )
    if kind == 2 and len(numbers) >= 4:
        at = 4 * rng.randrange(len(numbers) // 4)
        value = rng.choice((float("nan"), float("inf"), 0.0, 1e38, -1.0))
        return data[: 8 + size + at] + struct.pack("<f", value) + data[8 + size + at + 4 :]
    if kind == 3:
        return (
            data[:8]
            + header
            + (
                numbers[: rng.randrange(len(numbers) + 1)]
                if rng.random() < 0.5
                else numbers + bytes(rng.randrange(64))
            )
        )
    header = mutate_json(header, rng)
    return struct.pack("<Q", len(header)) + header + numbers


def mutate_archive(data: bytes, rng: random.Random) -> bytes:
    """Change a file of torch.save: its pickle, mostly, packed again with right checksums; an
    entry's name or bytes; or the archive's own bytes.
    """
    kind = rng.randrange(8)
    if kind == 0:
        return mutate_bytes(data, rng)
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    except Exception:  # what a former mutation has broken
        return mutate_bytes(data, rng)
    out = BytesIO()
    victim = rng.randrange(len(entries)) if kind == 1 and entries else -1
    with zipfile.ZipFile(out, "w") as archive:
        for index, (name, content) in enumerate(entries):
            if name.endswith("data.pkl") and kind > 1:
                content = mutate_bytes(content, rng)
            if index == victim:
                if rng.random() < 0.3:
                    continue
                content = content[: rng.randrange(len(content) + 1)]
            archive.writestr(name, content)
    return out.getvalue()


def mutated(seeds: Sequence[bytes], mutation: Mutation, rng: random.Random) -> bytes:
    """Return a mutation of one of ``seeds``; now and then several, one on the other."""
    data = rng.choice(seeds)
    for _ in range(rng.choice((1, 1, 1, 1, 1, 2, 3))):
        data = mutation(data, rng)
    return data
