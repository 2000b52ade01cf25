"""Where residuals go, and LoRA's parameters."""

import pytest
from pydantic import ValidationError

from modulate.config.injection import Injection, Tokens


@pytest.mark.parametrize("kind", ["text", "last", "mask"])
def test_settings_of_visual_tokens_are_refused_with_any_other_kind(kind):
    assert Tokens(kind="visual", steps=(-1,)).steps == (-1,) and Tokens(kind=kind).steps is None
    with pytest.raises(
        ValidationError,
        match=f"`steps` selects visual tokens; it has no effect with kind `{kind}`",
    ):
        Tokens(kind=kind, steps=(0,))
    assert (
        Injection(layers=(1,), empty="none").empty == "none"
        and Injection(layers=(1,), tokens=Tokens(kind=kind)).empty == "residual"
    )
    with pytest.raises(
        ValidationError,
        match=f"`empty: none` applies to visual tokens; it has no effect with kind `{kind}`",
    ):
        Injection(layers=(1,), empty="none", tokens=Tokens(kind=kind))


def test_a_layer_named_twice_is_refused():
    assert Injection(layers=(2, 0)).layers == (2, 0)
    with pytest.raises(ValidationError, match="`layers` names layer 1 twice"):
        Injection(layers=(1, 0, 1))
