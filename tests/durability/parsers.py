"""What the fuzzer feeds: each parser of foreign files, valid inputs to start from, and what must
hold of every result.

A parser may answer with a :class:`modulate.errors.ModulateError` or with a result that passes its
check; anything else is a finding. The checks are written from the formats, not from the parsers. A
further parser is a further row of :func:`parsers`.
"""

import contextlib
import csv
import functools
import importlib
import io
import itertools
import json
import math
import random
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from tests.durability import mutations as mutate

MCQ = Path("present_object_identification_easy.json")
ALERTS = Path("proactive_gaze_triggered_alert.json")
NAMES = tuple(f"P{i:02}.R0{i % 3}.mp4" for i in range(6))


@dataclass(frozen=True)
class Parser:
    """One parser.

    ``parse``: bytes to a result; ``check``: raises AssertionError for a result that cannot be right
    of these bytes. ``modules``: where its code is; of these only the functions in ``only``, if
    given, are counted for coverage, and none of ``never``. ``read``: the same from a file; every
    hundredth input goes there, and must be taken or refused alike if ``same``. ``share``: of the
    inputs that the other parsers get.
    """

    name: str
    what: str
    seeds: Callable[[], list[bytes]]
    parse: Callable[[bytes], Any]
    check: Callable[[Any, bytes], None]
    modules: tuple[str, ...]
    mutation: mutate.Mutation = mutate.mutate_bytes
    read: Callable[[Path], Any] | None = None
    suffix: str = ".csv"
    only: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    share: float = 1.0
    same: bool = True


@functools.cache
def scratch() -> Path:
    """Return a folder for files, in memory where there is such a place."""
    shared = Path("/dev/shm")
    folder = tempfile.TemporaryDirectory(prefix="torture-", dir=shared if shared.is_dir() else None)
    _kept.append(folder)
    return Path(folder.name)


_kept: list[Any] = []


def through_file(read: Callable[[Path], Any], name: str) -> Callable[[bytes], Any]:
    """Return a parser of bytes from one of files."""

    def parse(data: bytes) -> Any:
        path = scratch() / name
        path.write_bytes(data)
        return read(path)

    return parse


# --- gaze and hand

FULL = b"start_time,end_time,center_x,center_y,duration,start_time_seconds,end_time_seconds,fixation_id,duration_seconds\n"


def fixation_seeds() -> list[bytes]:
    rows = [(0.0, 2.5, 0.25, 0.75), (3.1, 5.75, 0.5, 0.125), (700.25, 704.0, -0.25, 1.25)]
    full = FULL + b"".join(
        f"{a},{b},{x},{y},{b - a},{a},{b},{i},{b - a}\n".encode()
        for i, (a, b, x, y) in enumerate(rows)
    )
    short = b"start_time,duration,center_x,center_y\r\n" + b"".join(
        f"{a},{b - a},{x},{y}\r\n".encode() for a, b, x, y in rows
    )
    quoted = (
        b'\xef\xbb\xbf"center_x","center_y","end_time_seconds","duration_seconds","note"\n"0.5","0.25","4.5","2","a,'
        b' b"\n'
    )
    return [
        full,
        short,
        quoted,
        FULL,
        b"center_y,center_x,end_time,start_time\n0.1,0.2,5,2\n0.1,0.2,9,8\n",
    ]


def table(data: bytes) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of a CSV; blank rows left out."""
    lines = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    return [name.strip() for name in lines[0]], [
        cells for cells in lines[1:] if any(cell.strip() for cell in cells)
    ]


def check_positions(rows: np.ndarray) -> None:
    assert rows.ndim == 2 and rows.shape[1] == 4 and np.isfinite(rows).all()
    assert ((rows[:, :2] >= -0.5) & (rows[:, :2] <= 1.5)).all() and (rows[:, 3] >= 0).all()


def check_fixations(result: np.ndarray, data: bytes) -> None:
    check_positions(result)
    header, rows = table(data)
    assert len(result) == len(rows)
    at = {name: header.index(name) for name in header}
    first = lambda *names: next((at[name] for name in names if name in at), None)
    start = first("start_time_seconds", "start_time")
    end = first("end_time_seconds", "end_time")
    long = first("duration_seconds", "duration")
    for found, cells in zip(result, rows, strict=True):
        assert (found[0], found[1]) == (float(cells[at["center_x"]]), float(cells[at["center_y"]]))
        begin = float(cells[start]) if start is not None else float(cells[end]) - float(cells[long])  # type: ignore[index]
        finish = float(cells[end]) if end is not None else float(cells[start]) + float(cells[long])  # type: ignore[index]
        assert math.isclose(found[2] - found[3] / 2, begin, abs_tol=1e-6) and math.isclose(
            found[2] + found[3] / 2, finish, abs_tol=1e-6
        )
    assert len({row.tobytes() for row in result + 0.0}) == len(result)  # + 0.0: no negative zeros


def raw_seeds(source: str) -> Callable[[], list[bytes]]:
    """Return what makes recordings of a few frames as a data set's exporter writes them."""
    points = [
        (0, 0.25, 0.75, 1),
        (1, 0.5, 0.5, 1),
        (1, 0.75, 0.5, 1),
        (3, 0.0, 0.0, 0),
        (9, 0.9, 0.1, 1),
    ]
    if source == "egtea":
        short = "".join(
            f"{i * 41666} SMP 1 {1280 * x} {960 * y} {k} F\n"
            for i, (k, x, y, _) in enumerate(points)
        )
        long = "".join(
            " ".join(
                ["1"] * 5 + [str(1280 * x), str(960 * y)] + ["0"] * 17 + [f"00:00:01:{k:02}", "F"]
            )
            + "\n"
            for k, x, y, _ in points
        )
        return lambda: [("## BeGaze\nTime Type Trial\n" + short).encode(), long.encode()]
    if source == "egoexolearn":
        return lambda: [
            npy(np.array([[x, y, valid] for _, x, y, valid in points])),
            npy(np.full((40, 3), 0.5, np.float32)),
        ]
    names = {
        "ego4d": "canonical_timestamp_s,confidence,norm_pos_x,norm_pos_y,other",
        "holoassist": "frame_idx,u,v,valid,t",
    }[source]
    row = {
        "ego4d": lambda k, x, y, v: f"{k / 30},{v},{x},{1 - y},a",
        "holoassist": lambda k, x, y, v: f"{k},{640 * x},{480 * y},{bool(v)},{k / 24}",
    }[source]
    return lambda: ["\n".join([names, *(row(*point) for point in points)]).encode()]


def npy(rows: np.ndarray) -> bytes:
    """Return an array as the bytes of its file."""
    out = io.BytesIO()
    np.save(out, rows)
    return out.getvalue()


def check_recording(result: Any, data: bytes) -> None:
    assert (
        result.xy.ndim == 2 and result.xy.shape[1] == 2 and len(result) == len(result.present) > 0
    )
    assert np.isfinite(result.xy).all() and ((result.xy >= 0) & (result.xy <= 1)).all()
    assert (
        0 <= result.untracked <= len(result)
        and 0 <= result.outside <= len(result) - result.untracked
        and len(result) <= 24 * 3600 * result.fps + 1
    )


def hand_seeds() -> list[bytes]:
    rows = [(0.0, 0.25, 0.75), (0.25, 0.3, 0.7), (2.5, -0.1, 1.2)]
    return [
        b"time_seconds,x,y\n" + b"".join(f"{t},{x},{y}\n".encode() for t, x, y in rows),
        b"y,note,x,time_seconds\r\n.5,a,.5,1\r\n",
        b"time_seconds,x,y\n",
    ]


def check_hand(result: Any, data: bytes) -> None:
    check_positions(result.fixations)
    header, rows = table(data)
    times = [float(cells[header.index("time_seconds")]) for cells in rows]
    assert len(result) == len(rows) and all(b > a for a, b in itertools.pairwise(times))
    for found, cells, time in zip(result.fixations, rows, times, strict=True):
        assert (found[0], found[1]) == (
            float(cells[header.index("x")]),
            float(cells[header.index("y")]),
        )
        assert math.isclose(found[2] - found[3] / 2, time, abs_tol=1e-6) and found[3] <= 0.5


# --- questions and splits


def question_seeds() -> list[bytes]:
    one = {
        "question": "What is it?",
        "time_stamp": "00:12",
        "answer": "B",
        "options": ["cup", "pan", "jar", "lid"],
        "task_type": "x",
    }
    two = {
        "question": "And now?",
        "time_stamp": 75.5,
        "answer": "a",
        "options": ["A. cup", "B. pan"],
    }
    entry = {
        "video_path": "videos/P01.R02.mp4",
        "response_time": "[00:00 - 00:12]",
        "questions": [one, two],
        "viewer": 3,
    }
    return [
        json.dumps(tree).encode()
        for tree in (
            [entry],
            [entry, {"video": "b.mp4", "questions": [two | {"time_stamp": "1:02:03"}]}],
        )
    ]


def alert_seeds() -> list[bytes]:
    points = [
        {"realtime": "00:05", "type": 0},
        {
            "realtime": 60,
            "type": 1,
            "input_video_clip": [52, "01:00"],
            "salience_map_path": "s.png",
        },
    ]
    question = {
        "question": "Tell me when I see the cup.",
        "time_stamp": "00:02",
        "target_object": "cup",
        "test_info": points,
    }
    return [json.dumps([{"video": "a.mp4", "questions": [question]}]).encode()]


def check_items(result: Any, data: bytes) -> None:
    tree = json.loads(data)
    asked = [question for entry in tree for question in entry["questions"]]
    assert (
        len(result) == sum(len(q["test_info"]) for q in asked)
        if "test_info" in asked[0]
        else len(result) == len(asked)
    )
    assert len({item.id for item in result}) == len(result)
    for item in result:
        assert (
            0 <= item.answer < len(item.options) <= 8
            and all(option.strip() for option in item.options)
            and item.question.strip()
        )
        assert 0 <= item.time < 1e7 and (
            item.clip is None or 0 <= item.clip[0] < item.clip[1] < 1e7
        )
        assert item.video and PurePosixPath(item.video).name == item.video and item.video != ".."
        json.dumps(dict(item.extra), ensure_ascii=False, allow_nan=False).encode()
        question = tree[item.place[0]]["questions"][item.place[1]]
        if "test_info" not in question:
            assert "ABCDEFGH"[item.answer] == question["answer"].strip().upper()
        elif len(item.place) == 3:
            assert item.answer == 1 - question["test_info"][item.place[2]]["type"]


def split_seeds() -> list[bytes]:
    stems = [name.removesuffix(".mp4") for name in NAMES]
    return [
        json.dumps(
            {
                "train": stems[:3],
                "val": [NAMES[3]],
                "test": [f"videos/{NAMES[4]}"],
                "unused": stems[5:],
            }
        ).encode()
    ]


def check_split(result: Any, data: bytes) -> None:
    assert set(result) == {name.removesuffix(".mp4") for name in NAMES} and set(
        result.values()
    ) <= {"train", "val", "test", "unused"}
    tree = json.loads(data)
    for stem, split in result.items():
        assert any(
            PurePosixPath(name.strip().replace("\\", "/")).name in (stem, f"{stem}{s}")
            for name in tree[split]
            for s in (".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v")
        ) or any(
            PurePosixPath(name.strip().replace("\\", "/")).stem == stem for name in tree[split]
        )


def check_name(result: str, data: bytes) -> None:
    parts = PurePosixPath(result).parts
    assert (
        ".." not in parts
        and not result.startswith("/")
        and "\0" not in result
        and "\\" not in result
        and not (result[1:2] == ":" and result[0].isalpha())
    )


# --- recipes

SHORT_YAML = (
    b"name: r\nseed: 0\nhost: {name: qwen, params: {path: 'a'}}\n",
    b"a: &b {lr: 1.0e-4, s: [1, 2]}\nc: {<<: *b, lr: 2.0}\nd: *b\n",
    b"- 1\n- [2, ~, no]\n- 2020-01-01\n",
    b"x: |\n  text\n  more\ny: 'q'\n",
    b"# note\nn: 0x1f\nf: .inf\nt: !!str 5\n",
)


def check_yaml(result: Any, data: bytes) -> None:
    import yaml

    assert repr(result) == repr(yaml.safe_load(data.decode("utf-8", "surrogateescape")))


@functools.cache
def shipped() -> dict[str, Any]:
    from modulate.config.recipe import dump, load_recipe, recipe_paths

    return {
        name: json.loads(json.dumps(_plain(dump(load_recipe(name)))))
        for name in recipe_paths()
        if "/" not in name
    }


def _plain(text: str) -> Any:
    from modulate.utils.safe_load import parse_yaml

    return parse_yaml(text, "shipped")


CONTRADICTIONS = (
    {"lora": None},
    {"training": {"condition": "none"}},
    {"training": {"batch_by": "clip", "batch_size": 1}},
    {"training": {"batch_by": "clip"}, "injection": {"tokens": {"kind": "text"}}},
    {"training": {"condition": "blank"}, "injection": {"empty": "none"}},
    {"letters": "four", "answer": "word"},
    {"evaluation": {"inputs": {"blank": {"name": "gaze_text"}}}},
)
"""Keys that are right each by itself."""


def recipe_seeds() -> list[bytes]:
    return [json.dumps(tree).encode() for tree in list(shipped().values())[:4]]


def mutate_recipe(data: bytes, rng: random.Random) -> bytes:
    """Change a tree as any JSON; one time in ten put keys together that contradict each other."""
    from modulate.config.recipe import overlay

    if rng.random() < 0.9:
        return mutate.mutate_json(data, rng)
    try:
        tree = json.loads(data)
        return json.dumps(
            overlay(tree if isinstance(tree, dict) else {}, rng.choice(CONTRADICTIONS))
        ).encode()
    except (ValueError, RecursionError):
        return mutate.mutate_bytes(data, rng)


def parse_recipe(data: bytes) -> Any:
    from modulate.config.recipe import validate
    from modulate.errors import RecipeError

    try:
        tree = json.loads(data)
        json.dumps(tree, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise RecipeError("no tree") from error  # texts are the parser of YAML's part
    if not isinstance(tree, dict):
        raise RecipeError("no mapping")
    return validate(tree, "r.yaml")


def check_recipe(result: Any, data: bytes) -> None:
    from modulate.config.recipe import dump, validate

    if len(data) % 16 == 0:  # writing YAML takes ten times as long as all the rest
        assert validate(_plain(dump(result)), "again") == result
    assert (
        result.training.stages and result.injection.layers and math.isfinite(result.injection.alpha)
    )


OVERRIDES = (
    b"seed=3",
    b"training.stages.0.epochs=2",
    b"encoder={name: coord_pe, params: {dim: 8}}",
    b"data.params.window=5.0",
    b"lora.rank=4",
    b"injection.layers=[1, 2]",
    b"evaluation.inputs.x={name: gaze_text}",
    b"training.stages.0.lr=1.0e-4",
    b"sampling.fps=[{up_to: 30, fps: 1}, {fps: 0.5}]",
    b"name=other",
)


def parse_override(data: bytes) -> Any:
    from modulate.config.recipe import override, validate

    tree = json.loads(_tiny())
    for line in data.decode("utf-8", "surrogateescape").split("\n")[:3]:
        override(tree, line)
    return validate(tree, "r.yaml")


@functools.cache
def _tiny() -> str:
    return json.dumps(shipped()["gazeqwen_tiny"])


# --- weights


@functools.cache
def saved(name: str = "saved") -> tuple[Any, Path]:
    """Return a small modulation with LoRA, and the folder of this name that it is saved in."""
    import torch

    from modulate.config.injection import Injection, LoraParams
    from modulate.interfaces.params import ComponentSpec
    from modulate.modulation.lora import LoraSpec
    from modulate.modulation.module import HostSpec, Modulation, ModulationConfig

    torch.set_num_threads(1)
    config = ModulationConfig(
        host=HostSpec(model_type="qwen2_5_vl", d_model=8, n_layers=3),
        encoder=ComponentSpec(name="heatmap_dur", params={"dim": 4}),
        modulator=ComponentSpec(
            name="gaze_resampler", params={"width": 4, "latents": 2, "blocks": 1}
        ),
        injection=Injection(layers=(0, 2)),
        d_features=3,
        lora=LoraSpec(
            params=LoraParams(rank=2),
            shapes={"self_attn.q_proj": (8, 8), "self_attn.v_proj": (8, 4)},
            layers={"self_attn.v_proj": (1,)},
            layers_path="model.layers",
        ),
        backbone=ComponentSpec(name="vjepa2_1", params={"weights": "random"}),
        training={"seed": 0},
    )
    modulation = Modulation(config)
    modulation.save_pretrained(scratch() / name)
    return modulation, scratch() / name


def config_seeds() -> list[bytes]:
    return [(saved()[1] / "config.json").read_bytes()]


def check_config(result: Any, data: bytes) -> None:
    tree = json.loads(data)
    assert result.host.d_model == int(float(tree["host"]["d_model"])) and list(
        result.injection.layers
    ) == [int(float(n)) for n in tree["injection"]["layers"]]
    assert type(result).model_validate_json(result.model_dump_json()) == result
    assert all(0 <= layer < result.host.n_layers for layer in result.injection.layers)


def read_folder(path: Path) -> Any:
    """Load the modulation whose configuration is in ``path``, beside the weights that belong to the
    seed's.
    """
    from modulate.modulation.module import Modulation

    folder = scratch() / "changed"
    if not folder.exists():
        folder.mkdir()
        for name in ("model.safetensors", "adapter"):
            (folder / name).symlink_to(saved()[1] / name)
    (folder / "config.json").write_bytes(path.read_bytes())
    return Modulation.from_pretrained(folder).config


def fill_weights(data: bytes) -> Any:
    """Take over a small modulation's numbers from the bytes of its file."""
    modulation, _ = saved("changed numbers")
    modulation.fill(tensors_of(data), "model.safetensors")
    return modulation


def fill_adapter(data: bytes) -> Any:
    """Take over a small modulation's LoRA from the bytes of its file."""
    modulation, _ = saved("changed numbers")
    modulation.lora.load_peft(tensors_of(data))
    return modulation


def tensors_of(data: bytes) -> dict[str, Any]:
    """Return the tensors in a file's bytes, with the errors that `Modulation.load` turns the
    library's into.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    from modulate.errors import CheckpointError

    try:
        return load(data)
    except SafetensorError as error:
        raise CheckpointError(f"The weights cannot be read: {error}") from error


def load_file(name: str) -> Callable[[Path], Any]:
    """Return what loads the small modulation from its folder, where the file ``name`` is another."""

    def read(path: Path) -> Any:
        modulation, folder = saved("changed numbers")
        (folder / name).write_bytes(path.read_bytes())
        try:
            modulation.load(folder)
        finally:
            (folder / name).write_bytes(weight_seeds(name)()[0])
        return modulation

    return read


def check_weights(name: str) -> Callable[[Any, bytes], None]:
    """Return a check that the modulation now holds just the numbers in a file's bytes."""

    def check(result: Any, data: bytes) -> None:
        from safetensors.torch import load

        short = lambda key: (
            key if name == "model.safetensors" else key[key.rindex("layers.") :]
        )  # where the layers are in a host is not the adapter's to say
        own = {
            short(key): tensor
            for key, tensor in (
                result.state_dict() if name == "model.safetensors" else result.lora.to_peft()[1]
            ).items()
        }
        for key, tensor in load(data).items():
            assert tensor.isfinite().all() and bool((own[short(key)] == tensor.float()).all())

    return check


def weight_seeds(name: str) -> Callable[[], list[bytes]]:
    return lambda: [(saved()[1] / name).read_bytes()]


def encoder_seeds() -> list[bytes]:
    trees = (
        {"dim": 48, "depth": 12, "heads": 3},
        {
            "embed_dim": 768,
            "depth": 4,
            "num_heads": 12,
            "mlp_ratio": 4.0,
            "levels": [1, 3],
            "patch_size": 16,
            "other": None,
        },
    )
    return [json.dumps(tree).encode() for tree in trees]


def check_encoder(result: Any, data: bytes) -> None:
    tree = json.loads(data)
    assert (
        result.dim == int(float(tree.get("dim", tree.get("embed_dim"))))
        and result.depth == int(float(tree["depth"]))
        and result.dim % result.heads == 0
    )
    assert (
        result.levels[-1] == result.depth - 1
        and max(result.dim, result.depth, result.hidden // result.dim) <= 1 << 16
    )


# --- the released checkpoint

DTYPES = ("float32", "float16", "bfloat16", "float64", "int64", "bool", "complex64")


def described() -> dict[str, Any]:
    """Return a small released checkpoint as a JSON tree: a tensor is {"tensor": type, "shape":
    […]}.
    """
    from modulate_gaze.checkpoint import PREFIXES, ReleasedConfig, released_shapes

    config = dict(d_vjepa=3, d_llm=6, n_latents=2, d_latent=4, n_blocks=1, n_layers=1, version="v")
    tensor = lambda *shape: {"tensor": "float32", "shape": list(shape)}
    state = {
        name: tensor(*shape) for name, shape in released_shapes(ReleasedConfig(**config), 1).items()
    }
    lora = {
        f"{PREFIXES[1]}.0.self_attn.{n}_proj.lora_{side}": (
            tensor(2, 6) if side == "A" else tensor(d, 2)
        )
        for n, d in (("q", 6), ("v", 4))
        for side in "AB"
    }
    return {
        "state_dict": state,
        "config": config,
        "lora_state_dict": lora,
        "lora_config": {"rank": 2, "alpha": 16.0},
    }


def built(value: Any) -> Any:
    """Return a described tree with real tensors; large ones are views that claim more numbers than
    they hold.
    """
    import torch

    if isinstance(value, list):
        return [built(item) for item in value]
    if not isinstance(value, dict):
        return value
    if (
        value.get("tensor") in DTYPES
        and isinstance(shape := value.get("shape"), list)
        and all(type(n) is int and 0 <= n < 2**15 for n in shape)
        and len(shape) < 6
    ):
        dtype = getattr(torch, value["tensor"])
        return (
            torch.ones(shape, dtype=dtype)
            if math.prod(shape) < 4096
            else torch.ones((), dtype=dtype).expand(shape)
        )
    return {key: built(item) for key, item in value.items()}


def parse_content(data: bytes) -> Any:
    from modulate.errors import CheckpointError
    from modulate_gaze.checkpoint import parse_content

    try:
        content = built(json.loads(data))
    except (ValueError, RuntimeError, RecursionError) as error:
        raise CheckpointError(
            "no content"
        ) from error  # files that cannot be read are the next parser's part
    return parse_content(content, Path("best_model.pt"))


def check_checkpoint(result: Any, data: bytes) -> None:
    c = result.config
    assert set(result.resampler) >= {"amplitude", "latents.0"} and result.resampler[
        "amplitude"
    ].shape == (c.n_layers,)
    assert (
        all(t.isfinite().all() for t in (*result.resampler.values(), *result.lora.values()))
        and len(result.lora) == 4 * c.n_layers
    )
    assert all(
        result.lora[layer, "self_attn.q_proj", "B"].shape == (c.d_llm, result.lora_config.rank)
        for layer in range(c.n_layers)
    )


def archive_seeds() -> list[bytes]:
    import torch

    out = io.BytesIO()
    torch.save(built(described()), out)
    return [out.getvalue()]


def pickle_of(data: bytes) -> bytes:
    """Return the pickle in a file of torch.save."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def check_count(result: int, data: bytes) -> None:
    assert 1 <= result <= 20_000_000


# --- what a run notes of itself


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
    return [
        b"".join(json.dumps(r, ensure_ascii=False).encode() + b"\n" for r in rows)
        for rows in ([row], [row, failed, row | {"condition": "none"}])
    ]


def mutate_lines(data: bytes, rng: random.Random) -> bytes:
    """Change one line of JSON as a tree, or the bytes of all."""
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
            and all(type(v) is float and abs(v) <= 1e100 for v in record.logits)
            and record.error == tree.get("error")
        )
        assert (
            record.correct == (record.prediction == record.answer)
            and 0 <= record.answer < 256
            and 0 <= record.active_steps <= 2**53
        )
        assert all(type(text) is str for text in (record.id, record.task, record.group)) and (
            record.prediction is None
        ) == bool(record.error)
        json.dumps(tree, ensure_ascii=False, allow_nan=False).encode()


def same(found: Any, given: Any) -> bool:
    """Return whether two values are equal and of one type: 1 is not True."""
    return bool(found == given) and type(found) is type(given)


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
        "apart": 0,
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


def head_seeds() -> list[bytes]:
    return [b'{"key": "ab", "sha256": "cd"}']


def lock_seeds() -> list[bytes]:
    return [b'{"pid": 4321, "host": "here", "since": 1700000000.5}']


def training_seeds() -> list[bytes]:
    from dataclasses import asdict

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
            "encodes": True,
            "cells": {"test_a": {"outcome": "refused", "reason": "no"}},
        }
    }
    return [
        json.dumps(
            {
                "rows": {"test_a": "a"},
                "versions": {"5.1": {"torch": "2", "device": "cpu", "hosts": hosts}},
            }
        ).encode()
    ]


def recorded(name: str, at: str) -> Callable[[bytes], Any]:
    """Return the parser of one record: the schema ``name`` of the module ``at``."""

    def parse(data: bytes) -> Any:
        from modulate.utils.schema import parse_record

        return parse_record(
            data, getattr(importlib.import_module(at), name), f"{name}.json", "record", ""
        )

    return parse


def check_record(result: Any, data: bytes) -> None:
    """Whatever a record says is what stands in the file, of the same type; numbers that are counted
    with are finite in floats.
    """
    tree = json.loads(data)
    json.dumps(tree, ensure_ascii=False, allow_nan=False).encode()
    assert agrees(result.model_dump(exclude_unset=True), tree)
    if type(result).__name__ == "LogLine":
        assert all(math.isfinite(value - -value) for value in result.curves().values())
    if type(result).__name__ == "Owner":
        import time

        assert 0 < result.pid < 2**31 and time.localtime(result.since)


def agrees(found: Any, given: Any) -> bool:
    """Return whether ``found`` says what the tree ``given`` does; a whole number may have become a
    float, and what is left out a default.
    """
    if isinstance(found, dict):
        return (
            isinstance(given, dict)
            and given.keys() <= found.keys()
            and all(agrees(found[key], value) for key, value in given.items())
        )
    if isinstance(found, list | tuple):
        return (
            isinstance(given, list) and len(found) == len(given) and all(map(agrees, found, given))
        )
    return same(found, given) or (
        type(found) is float and type(given) is int and found == float(given)
    )


# --- videos


def video_seeds() -> list[bytes]:
    import av

    found = []
    for ending, codec in (
        ("mp4", "libx264"),
        ("mkv", "libx264"),
        ("avi", "mpeg4"),
        ("ts", "libx264"),
        ("webm", "libvpx-vp9"),
    ):
        path = scratch() / f"seed.{ending}"
        with contextlib.suppress(av.FFmpegError, ValueError), av.open(str(path), "w") as out:
            stream = out.add_stream(codec, rate=4)
            stream.width = 32
            stream.height = 32
            stream.pix_fmt = "yuv420p"
            for k in range(8):
                frame = av.VideoFrame.from_ndarray(
                    np.full((32, 32, 3), 30 * k, np.uint8), format="rgb24"
                )
                out.mux(stream.encode(frame))
            out.mux(stream.encode())
        if path.is_file() and path.stat().st_size < mutate.LONGEST:
            found.append(path.read_bytes())
    return found


def read_video(path: Path) -> Any:
    from modulate.data.video import probe, read_frames
    from modulate.interfaces.visual_grid import sample_times

    info = probe(path)
    return info, read_frames(path, sample_times((0.0, min(info.duration, 1e6)), 2.0, 3))


def check_video(result: Any, data: bytes) -> None:
    info, frames = result
    assert (
        1 <= len(frames.times) <= 3
        and frames.images.shape[0] == len(frames.times)
        and frames.images.shape[3] == 3
        and frames.images.dtype == np.uint8
    )
    assert all(math.isfinite(t) for t in frames.times) and all(
        b > a for a, b in itertools.pairwise(frames.times)
    )
    assert 0 <= info.duration < 1e7 and 0 < info.fps <= 1e5 and info.width > 0 and info.height > 0


# --- all of them


COMMON = ("parse_record", "checked", "findings", "unknown_keys", "warn_of_key")
RECORDS: Sequence[tuple[str, str, Callable[[], list[bytes]], str, str, tuple[str, ...]]] = (
    ("state", "state.json of a run", state_seeds, "RunState", "modulate.runs.records", COMMON),
    (
        "environment",
        "environment.json of a run",
        environment_seeds,
        "Environment",
        "modulate.runs.records",
        COMMON,
    ),
    (
        "metrics",
        "metrics.json of a run",
        metrics_seeds,
        "Metrics",
        "modulate.runs.records",
        (*COMMON, "_same_tasks"),
    ),
    (
        "log",
        "a line of a training's log",
        log_seeds,
        "LogLine",
        "modulate.runs.records",
        (*COMMON[:3], "_further", "curves", "_number", "_bounded"),
    ),
    (
        "finished",
        "head of finished answers",
        head_seeds,
        "Head",
        "modulate.evaluation.finished_conditions",
        COMMON[:3],
    ),
    ("lock", "who holds a folder", lock_seeds, "Owner", "modulate.utils.file_lock", COMMON[:3]),
    (
        "resume",
        "notes of a training's checkpoint",
        training_seeds,
        "Notes",
        "modulate.training.trainer_state",
        COMMON,
    ),
    (
        "verified",
        "a plugin's note of hosts",
        verified_seeds,
        "Verified",
        "modulate.hosts.verified_versions",
        COMMON,
    ),
)
"""Name, what it is, seeds, schema and its module, functions that count for coverage."""


def parsers() -> dict[str, Parser]:
    """Return every parser by name.

    Imports what they need, so that the fuzzer can instrument it first.
    """
    from modulate.utils.paths import checked_name
    from modulate.utils.pickle_check import check_pickle
    from modulate.utils.safe_load import parse_yaml, read_yaml
    from modulate_gaze.checkpoint import read_checkpoint
    from modulate_gaze.fixation_csv import parse_fixations, read_fixations
    from modulate_gaze.raw_gaze import SUFFIXES, read_gaze
    from modulate_hand.path import HandPath
    from modulate_streamgaze.questions import parse_questions, read_questions
    from modulate_streamgaze.splits import file_split, parse_split

    def read_as(name: Path, read: Callable[[Path], Any]) -> Callable[[Path], Any]:
        return lambda path: read(path.replace(path.with_name(name.name)))

    text = lambda data: data.decode("utf-8", "surrogateescape")
    raw = lambda source: through_file(
        lambda path: read_gaze(
            path, source, "drop" if path.stat().st_size % 2 else "keep", (640, 480)
        ),
        f"raw{SUFFIXES[source]}",
    )
    json_rules: Sequence[str] = (
        "read_json",
        "parse_json",
        "_distinct",
        "_no_number",
        "_finite",
        "_short",
        "_deeper",
        "read_lines",
        "_refuse_device",
    )
    rows = [
        Parser(
            "fixations",
            "fixation CSV",
            fixation_seeds,
            lambda d: parse_fixations(d, "f.csv"),
            check_fixations,
            ("modulate_gaze.fixation_csv",),
            read=read_fixations,
        ),
        Parser(
            "hand",
            "hand CSV",
            hand_seeds,
            lambda d: HandPath.parse(d, "h.csv"),
            check_hand,
            ("modulate_hand.path",),
            read=HandPath.read,
        ),
        Parser(
            "questions",
            "multiple-choice questions, JSON",
            question_seeds,
            lambda d: parse_questions(d, MCQ),
            check_items,
            ("modulate_streamgaze.questions",),
            mutate.mutate_json,
            read_as(MCQ, read_questions),
            ".json",
            never=("_test_point", "_clip", "usable_questions"),
        ),
        Parser(
            "alerts",
            "proactive questions, JSON",
            alert_seeds,
            lambda d: parse_questions(d, ALERTS),
            check_items,
            ("modulate_streamgaze.questions",),
            mutate.mutate_json,
            read_as(ALERTS, read_questions),
            ".json",
            never=("parse_options", "parse_answer", "usable_questions"),
        ),
        Parser(
            "split",
            "split file, JSON",
            split_seeds,
            lambda d: parse_split(d, Path("split.json"), NAMES),
            check_split,
            ("modulate_streamgaze.splits",),
            mutate.mutate_json,
            lambda p: file_split(p, NAMES),
            ".json",
            only=("parse_split", "file_split", "_split", "_lists", "_near"),
        ),
        Parser(
            "names",
            "names of files in data files",
            lambda: [b"egtea/v00.mp4", b"a\\b.mp4", b"..v/P01.R02"],
            lambda d: checked_name(text(d), "q.json"),
            check_name,
            ("modulate.utils.paths",),
            only=("checked_name",),
        ),
        Parser(
            "yaml",
            "YAML",
            lambda: list(SHORT_YAML),
            lambda d: parse_yaml(text(d), "r.yaml"),
            check_yaml,
            ("modulate.utils.safe_load",),
            read=read_yaml,
            suffix=".yaml",
            never=("read_limited", *json_rules),
        ),
        Parser(
            "recipe",
            "recipes, as trees",
            recipe_seeds,
            parse_recipe,
            check_recipe,
            ("modulate.config.recipe",),
            mutate_recipe,
            only=("validate", "explain", "_short", "_known_keys", "_consistent", "choices"),
        ),
        Parser(
            "override",
            "overrides of a recipe",
            lambda: list(OVERRIDES),
            parse_override,
            check_recipe,
            ("modulate.config.recipe",),
            only=("override", "_refuse_unknown", "validate", "explain", "_short", "_known_keys"),
        ),
        Parser(
            "config",
            "config.json of a saved modulation",
            config_seeds,
            _config,
            check_config,
            ("modulate.modulation.config",),
            mutate.mutate_json,
            read_folder,
            ".json",
            never=("of", "portable"),
            same=False,
        ),
        Parser(
            "weights",
            "safetensors of a saved modulation",
            weight_seeds("model.safetensors"),
            fill_weights,
            check_weights("model.safetensors"),
            ("modulate.modulation.module", "modulate.modulation.lora"),
            mutate.mutate_safetensors,
            load_file("model.safetensors"),
            ".safetensors",
            only=("load", "fill", "check_numbers"),
        ),
        Parser(
            "adapter",
            "safetensors of its LoRA",
            weight_seeds("adapter/adapter_model.safetensors"),
            fill_adapter,
            check_weights("adapter"),
            ("modulate.modulation.lora",),
            mutate.mutate_safetensors,
            load_file("adapter/adapter_model.safetensors"),
            ".safetensors",
            only=("check_numbers", "load_peft", "_slot", "_unslot"),
        ),
        Parser(
            "encoder",
            "dimensions beside a backbone's weights, JSON",
            encoder_seeds,
            _encoder,
            check_encoder,
            ("modulate_vjepa.weights", "modulate_vjepa.encoder"),
            mutate.mutate_json,
            only=("parse_config", "config_from", "__post_init__", "hidden"),
        ),
        Parser(
            "checkpoint",
            "what a released checkpoint holds",
            lambda: [json.dumps(described()).encode()],
            parse_content,
            check_checkpoint,
            ("modulate_gaze.checkpoint",),
            mutate.mutate_json,
            never=("_unpickled", "_check_size", "read_checkpoint"),
        ),
        Parser(
            "pickle",
            "the pickle in a released checkpoint",
            lambda: [pickle_of(archive_seeds()[0])],
            lambda d: check_pickle(d, "best_model.pt"),
            check_count,
            ("modulate.utils.pickle_check",),
            never=("check_archive",),
        ),
        Parser(
            "archive",
            "a released checkpoint's file",
            archive_seeds,
            through_file(read_checkpoint, "best_model.pt"),
            check_checkpoint,
            ("modulate.utils.pickle_check", "modulate_gaze.checkpoint"),
            mutate.mutate_archive,
            only=("check_archive", "check_pickle", "_run", "_pop", "_unpickled", "_check_size"),
            share=0.1,
        ),
        Parser(
            "predictions",
            "predictions of a run, JSON lines",
            prediction_seeds,
            parse_predictions,
            check_predictions,
            ("modulate.evaluation.predictions",),
            mutate_lines,
            read_predictions,
            ".jsonl",
            only=("parse_predictions", "_consistent"),
            same=False,
        ),
        *(
            Parser(
                name,
                what,
                seeds,
                recorded(schema, at),
                check_record,
                ("modulate.utils.schema", "modulate.runs.records"),
                mutate.mutate_json,
                only=only,
            )
            for name, what, seeds, schema, at, only in RECORDS
        ),
        Parser(
            "video",
            "video files",
            video_seeds,
            through_file(read_video, "v.mp4"),
            check_video,
            ("modulate.data.video",),
            never=("read_shown.<locals>",),
            share=0.02,
        ),
    ]
    own = {
        "egtea": ("_read_egtea", "_time_code"),
        "ego4d": ("_read_ego4d", "_rows"),
        "holoassist": ("_read_holoassist", "_rows"),
        "egoexolearn": ("_dense",),
    }
    for (
        source,
        functions,
    ) in own.items():  # read_gaze chooses among them by name: its lines are no parser's
        rows.append(
            Parser(
                source,
                f"raw gaze of {source}",
                raw_seeds(source),
                raw(source),
                check_recording,
                ("modulate_gaze.raw_gaze",),
                only=(
                    (*functions, "_recording", "_float", "frame", "add", "recording")
                    if source != "egoexolearn"
                    else functions
                ),
            )
        )
    return {row.name: row for row in rows}


def _config(data: bytes) -> Any:
    from modulate.modulation.config import parse_config

    return parse_config(data, "config.json")


def _encoder(data: bytes) -> Any:
    from modulate_vjepa.weights import parse_config

    return parse_config(data, "config.json")
