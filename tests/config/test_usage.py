"""modulate.config.usage: what is saved of a recipe for those who use its modulation."""

import json

import pytest

from modulate.config.recipe import load_recipe
from modulate.config.usage import Usage
from modulate.errors import CheckpointError
from modulate.modulation.config import parse_config
from tests.paths import FIXTURES, SMALL


def test_a_recipe_says_what_its_modulation_reads_and_how_it_is_asked():
    recipe = load_recipe("gazeqwen_tiny")
    usage = Usage.of(recipe)
    assert usage.signal == "gaze"
    assert usage.sampling == recipe.sampling
    assert usage.answer == "word"
    assert usage.template == "Question: {question}\nThe answer is:"
    assert usage.host is not None
    assert usage.host.params == {"path": "package:modulate_tabletop/host"}
    assert Usage.model_validate_json(usage.model_dump_json()) == usage


def test_a_host_in_a_folder_of_this_machine_is_left_out(tmp_path):
    recipe = load_recipe("gazeqwen_tiny", [f"host.params.path={tmp_path}"])
    assert Usage.of(recipe).host is None


def test_where_the_host_was_loaded_to_is_left_out():
    changes = ["host.params.device=cpu", "host.params.dtype=bfloat16"]
    usage = Usage.of(load_recipe(str(SMALL), changes))
    assert usage.host is not None
    assert "device" not in usage.host.params
    assert usage.host.params["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    "changes", [{"path": "/etc"}, {"path": "../hosts/a"}, {"trust_remote_code": True}]
)
def test_a_saved_modulation_may_not_choose_a_folder_or_trust_code(changes):
    saved = FIXTURES / "saved_by_0_1" / "run" / "modulation" / "config.json"
    tree = json.loads(saved.read_text())
    assert parse_config(json.dumps(tree).encode(), "config.json").usage is None
    usage = Usage.of(load_recipe("gazeqwen_tiny"))
    tree["usage"] = usage.model_dump(mode="json")
    parsed = parse_config(json.dumps(tree).encode(), "config.json")
    assert parsed.usage == usage
    tree["usage"]["host"]["params"] |= changes
    with pytest.raises(CheckpointError, match=r"usage\.host names"):
        parse_config(json.dumps(tree).encode(), "config.json")
