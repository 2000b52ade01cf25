"""Reading the released checkpoint: what is refused, and how quickly."""

import io
import math
import pickle  # noqa: TID251  (to show what is refused)
import re
import time
import zipfile

import pytest
import torch
from typer.testing import CliRunner

from modulate import Modulation, cli
from modulate.errors import CheckpointError, MissingFileError
from modulate.utils.pickle_check import check_pickle
from modulate_gaze import checkpoint as reading
from modulate_gaze.checkpoint import read_checkpoint
from modulate_gaze.convert import convert
from tests.plugins.gaze.released_content import released_content


def put(*path, value):
    def change(content):
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


def drop(*path):
    def change(content):
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return change


A0 = "model.language_model.layers.0.self_attn.q_proj.lora_A"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            put("epoch", value=3),
            "holds an unexpected entry 'epoch' (1 in all); nothing was converted.",
        ),
        (drop("lora_config"), "lacks the entry 'lora_config' (1 in all)"),
        (
            put("config", "gaze_input", value="heatmap_tau"),
            (
                "config.gaze_input: the file was trained with another encoding of gaze than"
                " coord_pe, the only one that is read; got 'heatmap_tau'."
            ),
        ),
        (
            put("config", "gaze_input", value=""),
            "config.gaze_input: the file was trained with another encoding of gaze",
        ),
        (
            put("config", "gaze_input", value=None),
            "config.gaze_input: Input should be a valid string; got None.",
        ),
        (
            put("config", "gaze_input", value="coord_pe_rel"),
            (
                "another encoding of gaze than coord_pe, the only one that is read; got"
                " 'coord_pe_rel'."
            ),
        ),
        (
            put("config", "per_layer", value=False),
            (
                "config.per_layer: the file was trained with one module shared by all layers; only"
                " one for each layer is read; got False."
            ),
        ),
        (
            put("config", "per_layer", value=None),
            "config.per_layer: Input should be a valid boolean; got None.",
        ),
        (
            put("config", "per_layer", value="yes"),
            "config.per_layer: Input should be a valid boolean; got 'yes'.",
        ),
        (
            put("config", "amplitude_init", value=math.nan),
            "config.amplitude_init: Input should be a finite number; got nan.",
        ),
        (
            put("config", "sharing", value="shared"),
            "config.sharing: Extra inputs are not permitted; got 'shared'.",
        ),
        (
            put("config", "version", value=""),
            "config.version: String should have at least 1 character; got ''.",
        ),
        (
            drop("config", "d_llm"),
            "tensor 'proj_outs.0.weight' has shape (8, 8), but config says (3584, 8).",
        ),
        (
            put("config", "d_llm", value="8"),
            "config.d_llm: Input should be a valid integer; got '8'.",
        ),
        (
            put("config", "n_latents", value=0),
            "config.n_latents: Input should be greater than or equal to 1; got 0.",
        ),
        (
            put("config", "n_blocks", value=True),
            "config.n_blocks: Input should be a valid integer; got True.",
        ),
        (put("config", value=[1]), "config: Input should be a valid dictionary"),
        (put("lora_config", "alpha", value=float("inf")), "lora_config.alpha: Input should be"),
        (
            put("lora_config", "rank", value=4),
            f"tensor '{A0}' has shape (2, 8), but config and lora_config say (4, 8).",
        ),
        (
            put("config", "n_latents", value=4),
            "tensor 'latents.0' has shape (3, 8), but config says (4, 8).",
        ),
        (
            put("config", "d_llm", value=16),
            "tensor 'proj_outs.0.weight' has shape (8, 8), but config says (16, 8).",
        ),
        (put("config", "n_blocks", value=3), "state_dict lacks the tensor 'q_projs.0.2.weight'"),
        (
            put("config", "n_blocks", value=1),
            "state_dict holds an unexpected tensor 'block_norms.0.1.bias'",
        ),
        (
            put("config", "n_layers", value=27),
            "tensor 'amplitude' has shape (28,), but config says (27,).",
        ),
        (
            put("state_dict", "extra", value=torch.zeros(1)),
            "state_dict holds an unexpected tensor 'extra' (1 in all)",
        ),
        (
            drop("state_dict", "g_projs.3.1.bias"),
            "state_dict lacks the tensor 'g_projs.3.1.bias' (1 in all)",
        ),
        (
            put("state_dict", "amplitude", value=torch.ones(28, dtype=torch.int64)),
            "tensor 'amplitude' is torch.int64, torch.strided, on cpu; dense float32",
        ),
        (
            put("state_dict", "amplitude", value=torch.ones(28, dtype=torch.float64)),
            "tensor 'amplitude' is torch.float64",
        ),
        pytest.param(
            put("state_dict", "amplitude", value=torch.ones(28).to_sparse()),
            "tensor 'amplitude' is torch.float32, torch.sparse_coo",
            marks=pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants"),
        ),
        (
            put("state_dict", "amplitude", value=[1.0] * 28),
            "state_dict holds list under 'amplitude'; tensors under names are expected.",
        ),
        (
            put("state_dict", "amplitude", value=torch.full((28,), math.nan)),
            "tensor 'amplitude' holds numbers that are not finite.",
        ),
        (
            put("state_dict", value=torch.zeros(1)),
            "state_dict is a Tensor; a dictionary of tensors is expected.",
        ),
        (
            put("lora_state_dict", "visual.blocks.0.attn.q_proj.lora_A", value=torch.zeros(2, 8)),
            "unexpected tensor 'visual.blocks.0.attn.q_proj.lora_A'",
        ),
        (
            put(
                "lora_state_dict", "model.layers.0.self_attn.q_proj.lora_A", value=torch.zeros(2, 8)
            ),
            "beside 'model.language_model.layers'",
        ),
        (
            put("lora_state_dict", A0.replace(".0.", ".28."), value=torch.zeros(2, 8)),
            "unexpected tensor 'model.language_model.layers.28.self_attn",
        ),
        (
            put("lora_state_dict", A0.replace(".0.", ".00."), value=torch.zeros(2, 8)),
            "unexpected tensor 'model.language_model.layers.00.self_attn",
        ),
        (
            put("lora_state_dict", A0.replace(".0.", ".١."), value=torch.zeros(2, 8)),
            "unexpected tensor 'model.language_model.layers.١.self_attn",
        ),
        (
            drop("lora_state_dict", A0),
            "lora_state_dict lacks 1 tensors, the first is self_attn.q_proj.lora_A of layer 0.",
        ),
        (
            put(
                "lora_state_dict",
                A0.replace("q_proj.lora_A", "v_proj.lora_B"),
                value=torch.zeros(6, 2),
            ),
            "has shape (4, 2), but config and lora_config",
        ),
    ],
)
def test_anything_unexpected_is_refused_by_name_and_nothing_is_written(
    change, message, saved, tmp_path
):
    content = released_content()
    change(content)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        convert(saved(content), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["coord_pe", "coordpe", "Coord-PE", "G3"])
def test_old_keys_that_agree_with_the_released_class_are_ignored_and_reported(
    name, saved, tmp_path
):
    content = released_content()
    plain = convert(saved(content), tmp_path / "plain")
    content["config"] |= {"gaze_input": name, "per_layer": True, "amplitude_init": 0.5}
    path = saved(content, "older.pt")
    older = convert(path, tmp_path / "older")
    assert plain.ignored == () and older.ignored == (
        f"Ignored: config.gaze_input is {name!r}; coord_pe is the only encoding that is built.",
        "Ignored: config.per_layer is True; a module for each layer is all that is built.",
        "Ignored: config.amplitude_init is 0.5; the file has the trained amplitudes.",
    )
    ours = older.modulation.state_dict()
    theirs = plain.modulation.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    result = CliRunner().invoke(cli.build(), ["convert", str(path), str(tmp_path / "converted")])
    assert result.exit_code == 0 and result.output.splitlines()[3:6] == list(older.ignored)


def test_a_configuration_may_leave_out_what_the_released_class_has_defaults_for(saved, tmp_path):
    content = released_content(d_vjepa=768, d_llm=32, n_latents=32, d_latent=256)
    for key in ("version", "d_vjepa", "n_latents", "d_latent", "n_blocks", "n_layers"):
        del content["config"][key]
    done = convert(saved(content), tmp_path / "out")
    assert (
        done.ignored[0] == "Not in config: d_vjepa; taken to be 768, as by the released class."
        and len(done.ignored) == 6
    )
    assert done.ignored[-1] == "Not in config: version; it is noted as unknown."
    assert (
        "version"
        not in Modulation.from_pretrained(tmp_path / "out").config.training["converted_from"]
    )


def test_the_older_flat_layout_is_recognized_by_a_key(saved):
    content = released_content()
    content["state_dict"] = {
        "proj_in.weight": torch.zeros(8, 6),
        "latents": torch.zeros(3, 8),
        "q_projs.0.weight": torch.zeros(8, 8),
    }
    with pytest.raises(
        CheckpointError,
        match=r"tensor 'proj_in\.weight' belongs to the older layout with one shared module",
    ):
        read_checkpoint(saved(content))


class Payload:
    def __reduce__(self):
        return (print, ("code from the file runs",))


def test_a_file_that_would_run_code_is_refused_and_does_not_run_it(saved, capsys):
    content = released_content() | {"config": Payload()}
    with pytest.raises(CheckpointError, match="cannot be read as a file of plain tensors"):
        read_checkpoint(saved(content))
    assert "code from the file runs" not in capsys.readouterr().out


def test_a_file_too_large_is_refused_before_it_is_read(saved, tmp_path, monkeypatch):
    path = saved(released_content())
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("the file was read"))
    big = tmp_path / "big.pt"
    with big.open("wb") as file:
        file.truncate(reading.LIMIT + 1)  # sparse: takes no room on disk
    with pytest.raises(
        CheckpointError,
        match=f"big.pt has {reading.LIMIT + 1} bytes, more than the {reading.LIMIT} that are read.",
    ):
        read_checkpoint(big)
    packed = tmp_path / "packed.pt"
    with (
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("archive/data/0", "w") as entry,
    ):
        for _ in range(reading.LIMIT // 2**20 + 1):
            entry.write(bytes(2**20))
    assert packed.stat().st_size < 2**20
    with pytest.raises(CheckpointError, match="bytes unpacked, more than the"):
        read_checkpoint(packed)
    monkeypatch.setattr(reading, "LIMIT", path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=r"best_model\.pt has"):
        read_checkpoint(path)


def test_a_view_that_claims_more_numbers_than_the_file_holds_is_refused(saved):
    content = released_content()
    content["state_dict"]["proj_outs.0.weight"] = torch.zeros(1).expand(16384, 8192)
    path = saved(content)
    assert path.stat().st_size < 2**20
    with pytest.raises(CheckpointError, match="bytes, more than the 268435456 that are read"):
        read_checkpoint(path)


def billion_laughs(levels=30, width=9):
    """Return nested lists, each with nine references to the next: few bytes, countless values."""
    inner = ["lol"]
    for _ in range(levels):
        inner = [inner] * width
    return inner


@pytest.mark.parametrize(
    "place",
    [
        ("config",),
        ("lora_config",),
        ("state_dict",),
        ("config", "version"),
        ("state_dict", "amplitude"),
    ],
)
def test_values_that_multiply_are_refused_quickly(place, saved):
    content = released_content()
    put(*place, value=billion_laughs())(content)
    start = time.process_time()
    with pytest.raises(
        CheckpointError,
        match="its pickle makes more than 20000000 values after expanding shared ones",
    ):
        read_checkpoint(saved(content))
    assert time.process_time() - start < 3


def test_a_container_that_holds_itself_is_refused(saved):
    content = released_content()
    content["config"]["itself"] = content["config"]
    with pytest.raises(
        CheckpointError, match="its pickle changes a container after putting it into another"
    ):
        read_checkpoint(saved(content))


def test_pickled_values_are_counted_as_if_written_out():
    shared = [1, 2, 3]
    counted = {
        name: check_pickle(pickle.dumps(value, protocol=2), "p")
        for name, value in {
            "once": [shared],
            "thrice": [shared] * 3,
            "apart": [[1, 2, 3]] * 1,
        }.items()
    }
    assert counted["once"] == counted["apart"] and counted["thrice"] - counted[
        "once"
    ] == 2 * check_pickle(pickle.dumps(shared, protocol=2), "p")
    for data, message in (
        (b"", "its pickle ends early|damaged"),
        (b"\x80\x02]", "damaged|ends early"),
        (b"\x80\x02e.", "damaged"),
        (b"\x80\x02h\x07.", "damaged"),
    ):
        with pytest.raises(CheckpointError, match=message):
            check_pickle(data, "p")


def test_a_layer_s_number_of_any_length_is_refused(saved):
    content = released_content()
    content["lora_state_dict"][
        f"model.language_model.layers.{'1' * 5000}.self_attn.q_proj.lora_A"
    ] = torch.zeros(2, 8)
    with pytest.raises(CheckpointError, match="holds an unexpected tensor") as caught:
        read_checkpoint(saved(content))
    assert len(str(caught.value)) < 1000


def test_archives_with_damaged_directories_are_refused(saved, tmp_path):
    data = bytearray(saved(released_content()).read_bytes())
    at = data.rindex(b"PK\x01\x02")
    for offset in range(4, 46):
        changed = bytearray(data)
        changed[at + offset] ^= 0xFF
        (tmp_path / "changed.pt").write_bytes(changed)
        try:
            assert read_checkpoint(tmp_path / "changed.pt").modules == 4  # fields that nobody reads
        except CheckpointError as error:
            assert str(tmp_path / "changed.pt") in str(error)


def test_an_archive_whose_entry_has_a_long_second_name_gives_a_short_message(saved, tmp_path):
    data = bytearray(saved(released_content()).read_bytes())
    at = data.rindex(
        b"PK\x03\x04", 0, data.index(b"/data.pkl")
    )  # where the entry's own header begins
    data[at + 6 : at + 8] = bytes(2)  # names in no encoding that could fail
    data[at + 26 : at + 28] = (4000).to_bytes(2, "little")
    (tmp_path / "long.pt").write_bytes(data)
    with pytest.raises(
        CheckpointError, match=r"is not a file that torch\.save writes: File name in directory"
    ) as caught:
        read_checkpoint(tmp_path / "long.pt")
    assert len(str(caught.value)) < 500


def test_other_files_are_refused(saved, tmp_path):
    with pytest.raises(MissingFileError, match="There is no checkpoint at"):
        read_checkpoint(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("no archive")
    with pytest.raises(CheckpointError, match=r"is not a file that torch\.save writes"):
        read_checkpoint(tmp_path / "text.pt")
    with pytest.raises(
        CheckpointError, match="holds a list; a released checkpoint is a dictionary"
    ):
        read_checkpoint(saved([1, 2]))
    cut = saved(released_content()).read_bytes()
    (tmp_path / "cut.pt").write_bytes(cut[: len(cut) // 2])
    with pytest.raises(CheckpointError, match=r"is not a file that torch\.save writes"):
        read_checkpoint(tmp_path / "cut.pt")
    plain = io.BytesIO()
    torch.save(released_content(), plain, _use_new_zipfile_serialization=False)
    (tmp_path / "old.pt").write_bytes(plain.getvalue())
    with pytest.raises(CheckpointError, match=r"is not a file that torch\.save writes"):
        read_checkpoint(tmp_path / "old.pt")


# --- layers, folders, the command
