"""Modules that libraries put around a host's: paths go by what is inside them."""

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from modulate.hosts.wrappers import WrappedPath, is_wrapper, named_descendants, unwrapped


def compiled(module):
    return torch.compile(module, backend="eager")


def both(module):
    return compiled(checkpoint_wrapper(module))


def twice(module):
    return checkpoint_wrapper(checkpoint_wrapper(module))


of_every_kind = pytest.mark.parametrize("wrap", [compiled, checkpoint_wrapper, both, twice])


def tree():
    """A module with one child of one child of two maps; nothing is wrapped."""
    return nn.ModuleDict(
        {
            "mlp": nn.ModuleDict(
                {"inner": nn.ModuleDict({"up": nn.Linear(2, 3), "down": nn.Linear(3, 2)})}
            )
        }
    )


def paths(module):
    return [path for path, _ in named_descendants(module)]


@of_every_kind
def test_a_wrapper_hands_out_its_child_s_parts_as_its_own(wrap):
    module = nn.Linear(2, 2)
    assert is_wrapper(wrap(module))
    assert unwrapped(wrap(module)) is module
    assert unwrapped(module) is module


def test_a_module_of_its_own_with_one_child_is_no_wrapper():
    own = nn.Sequential(nn.Linear(2, 2))
    for module in (
        own,
        nn.Identity(),
        nn.Sequential(nn.Identity()),
        tree(),
    ):  # the last one's child has a child, which it does not hand out
        assert is_wrapper(module) is False
    more = checkpoint_wrapper(nn.Linear(2, 2))
    more.scale = nn.Parameter(torch.ones(1))
    assert is_wrapper(more) is False
    empty = nn.Module()
    empty.register_module("inner", None)
    assert is_wrapper(empty) is False


@of_every_kind
def test_paths_are_the_same_with_wrappers_and_name_the_outermost_module(wrap):
    module = tree()
    expected = paths(module)
    assert expected == ["mlp", "mlp.inner", "mlp.inner.up", "mlp.inner.down"]
    inner = module["mlp"]["inner"]
    inner["up"] = wrap(inner["up"])
    module["mlp"]["inner"] = wrap(inner)
    module["mlp"] = wrap(module["mlp"])
    assert paths(module) == paths(wrap(module)) == expected
    found = dict(named_descendants(module))
    assert found["mlp"] is module["mlp"] and found["mlp.inner.up"] is inner["up"]
    assert WrappedPath.of(wrap(module), "mlp.inner.up").module is inner["up"]
    assert paths(nn.ModuleList([nn.Linear(1, 1)])) == ["0"]
    assert [path for path, _ in named_descendants(nn.ModuleList([nn.Linear(1, 1)]), "at.")] == [
        "at.0"
    ]


def test_a_place_stands_until_any_module_on_the_way_to_it_is_another():
    module = tree()
    place = WrappedPath.of(module, "mlp.inner.up")
    assert place.is_current and place.module is module["mlp"]["inner"]["up"]
    was = module["mlp"]
    module["mlp"] = compiled(was)
    assert not place.is_current and WrappedPath.of(module, "mlp.inner.up").is_current
    module["mlp"] = was
    assert place.is_current
    module["mlp"]["inner"]["up"] = nn.Linear(2, 3)
    assert not place.is_current


@pytest.mark.parametrize(
    ("path", "missing", "where"),
    [
        ("mlp.nose", "nose", "ModuleDict"),
        ("mlp.inner.up.nose", "nose", "Linear"),
        ("nose.inner", "nose", "ModuleDict"),
    ],
)
def test_a_path_that_ends_is_refused_with_the_step_that_is_missing(path, missing, where):
    with pytest.raises(LookupError, match=f"there is no '{missing}' in {where}"):
        WrappedPath.of(tree(), path)
