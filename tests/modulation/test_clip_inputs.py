"""What callers pass to a conditioning: accepted in every sensible form, else refused by name."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from modulate import ClipInput, ModulatedHost, plugins
from modulate.errors import (
    ConditioningError,
    HostError,
    ModulateError,
    SignalError,
    SignalWarning,
)
from modulate.interfaces.multi_signal import MultiSignal
from modulate.modulation.clip_inputs import ClipRequirements, as_lists, as_mask, check_rows
from modulate_gaze.scanpath import Scanpath
from modulate_hand.path import HandPath
from tests.tiny import CLIP, D_FEATURES, GRID, VIDEO, fresh, inputs, qwen, scanpath

REQUIREMENTS = ClipRequirements("gaze", D_FEATURES)


def strong(host):
    modulation = fresh(host)
    for writer in modulation.out:
        torch.nn.init.normal_(writer.weight, std=0.5)
    return modulation.eval()


FORMS = {
    "lists": lambda: [[CLIP], [CLIP]],
    "tuples": lambda: ((CLIP,), (CLIP,)),
    "a generator of lists": lambda: ([CLIP] for _ in range(2)),
    "generators": lambda: ((CLIP for _ in range(1)) for _ in range(2)),
    "iterators": lambda: iter([iter([CLIP]), (clip for clip in (CLIP,))]),
    "dict values": lambda: {"a": [CLIP], "b": [CLIP]}.values(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("way", ["condition", "maybe_condition", "ModulatedHost"])
def test_rows_of_every_kind_of_iterable_are_read_once(host, form, way):
    batch = inputs()
    modulation = strong(host)
    with modulation.attached(host) as attachment, attachment.condition([[CLIP], [CLIP]]):
        expected = host(**batch).logits
    if way == "ModulatedHost":
        wrapped = ModulatedHost(modulation, host)
        logits = wrapped(FORMS[form](), **batch).logits
        report = wrapped.attachment.report()
        wrapped.attachment.detach()
    else:
        with modulation.attached(host) as attachment, getattr(attachment, way)(FORMS[form]()):
            logits = host(**batch).logits
        report = attachment.report()
    assert report.tokens == 2 * GRID.tokens and torch.equal(logits, expected)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            CLIP,
            (
                r"Rows must be a list, got a ClipInput by itself\. .*`\[\[clip\]\]` is one row with"
                r" one clip"
            ),
        ),
        ([CLIP], "Row 0 must be a list, got a ClipInput by itself"),
        ([[CLIP], None], "Row 1 must be a list, got None"),
        (None, "Rows must be a list, got None"),
        ("clips", "Rows must be a list, got 'clips' .a str"),
        ([["clip"]], "Row 0, clip 0 is 'clip' .a str., not a ClipInput"),
        (["clip"], "Row 0 must be a list, got 'clip'"),
        ([{"clip": CLIP}], "Row 0 must be a list, got a dict"),
        ({0: [CLIP]}, "Rows must be a list, got a dict"),
        ([[CLIP, None]], "Row 0, clip 1 is None, not a ClipInput"),
        ([[[CLIP]]], "Row 0, clip 0 is a list, not a ClipInput"),
        (torch.zeros(2, 2), "Rows must be a list, got a Tensor"),
        (3, "Rows must be a list, got 3"),
        ([[scanpath()]], "Row 0, clip 0 is a Scanpath, not a ClipInput"),
    ],
)
@pytest.mark.parametrize("way", ["condition", "maybe_condition", "ModulatedHost"])
def test_anything_but_rows_of_clips_is_refused_before_any_work(host, way, rows, message):
    wrapped = ModulatedHost(fresh(host), host)
    try:
        with pytest.raises(ConditioningError, match=message):
            if way == "ModulatedHost":
                wrapped(rows, **inputs())
            with getattr(wrapped.attachment, way)(rows):
                pytest.fail("the block was entered")
    finally:
        wrapped.attachment.detach()


def test_a_conditioning_without_rows_is_refused_and_one_without_clips_is_not(host, modulation):
    with modulation.attached(host) as attachment:
        with pytest.raises(ConditioningError, match="has no rows"), attachment.condition([]):
            pytest.fail("the block was entered")
        with (
            attachment.maybe_condition([]),
            attachment.maybe_condition([[], []]),
            attachment.condition([[], []]),
        ):
            host(**inputs())


def features_with(value):
    features = CLIP.features.clone()
    features[1, 2, 3] = value
    return features


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_features_that_are_not_finite_are_named_by_row_clip_and_place(
    host, modulation, value, dtype
):
    bad = replace(CLIP, features=features_with(value).to(dtype))
    message = (
        r"Row 1, clip 1: 1 of its features are not finite in fp32, the first at step 1, token 2,"
        r" channel 3"
    )
    with (
        modulation.attached(host) as attachment,
        pytest.raises(ConditioningError, match=message),
        attachment.condition([[CLIP], [CLIP, bad]]),
    ):
        pytest.fail("the block was entered")


def test_features_that_only_fp64_can_hold_are_not_finite():
    with pytest.raises(ConditioningError, match="not finite in fp32"):
        check_rows([[replace(CLIP, features=CLIP.features.double() * 1e300)]], REQUIREMENTS)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn]
)
def test_features_of_every_real_dtype_are_accepted(dtype):
    check_rows([[replace(CLIP, features=CLIP.features.to(dtype))]], REQUIREMENTS)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_features_that_are_not_real_numbers_are_refused(dtype):
    with pytest.raises(
        HostError, match=f"Row 0, clip 0: its features are of {dtype}; they must be"
    ):
        check_rows([[replace(CLIP, features=CLIP.features.to(dtype))]], REQUIREMENTS)


def test_features_elsewhere_or_of_another_kind_are_refused():
    for features, message in (
        (CLIP.features.to("meta"), "on the meta device"),
        (CLIP.features.to_sparse(), "layout torch.sparse_coo"),
        (CLIP.features.numpy(), "not a Tensor; `torch.as_tensor`"),
        (
            CLIP.features[:1],
            (
                r"Row 0, clip 0: a clip of 2 steps of 2×3 needs features of shape \(2, 6, 12\), got"
                r" \(1, 6, 12\)"
            ),
        ),
        (None, "got None"),
    ):
        with pytest.raises(HostError, match=message):
            check_rows([[replace(CLIP, features=features)]], REQUIREMENTS)
    check_rows([[ClipInput(None, GRID)]], REQUIREMENTS)  # without a signal no features are read
    check_rows(
        [[replace(CLIP, features=CLIP.features.to("meta"))]], replace(REQUIREMENTS, on_meta=True)
    )


def broken(values, cls=Scanpath):
    """A scanpath whose numbers bypassed its own check."""
    signal = cls()
    object.__setattr__(signal, "fixations", np.array(values))
    return signal


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_signals_with_numbers_that_are_not_finite_are_refused(value):
    bad = broken([[0.5, value, 1.0, 1.0]])
    with pytest.raises(
        SignalError,
        match="Row 1, clip 0: `fixations` of its gaze signal holds numbers that are not finite",
    ):
        check_rows([[], [replace(CLIP, signal=bad)]], REQUIREMENTS)
    with pytest.raises(SignalError, match=r"`parts\.gaze\.fixations` of its bundle signal"):
        check_rows(
            [[replace(CLIP, signal=MultiSignal({"hand": HandPath(), "gaze": bad}))]],
            replace(REQUIREMENTS, signal_kind="bundle"),
        )


def test_a_signal_of_another_kind_is_refused_and_one_of_a_subclass_is_not():
    check_rows([[replace(CLIP, signal=HandPath())]], REQUIREMENTS)  # a hand's path is a scanpath
    with pytest.raises(
        SignalError,
        match=(
            "Row 0, clip 0: its signal is of the kind 'gaze', but this modulation's encoder reads"
            " 'hand'"
        ),
    ):
        check_rows([[CLIP]], replace(REQUIREMENTS, signal_kind="hand"))
    with pytest.raises(
        SignalError, match="kind 'bundle', but this modulation's encoder reads 'gaze'"
    ):
        check_rows([[replace(CLIP, signal=MultiSignal({"gaze": scanpath()}))]], REQUIREMENTS)
    with pytest.raises(SignalError, match="reads 'nobody_knows_it'"):
        check_rows([[CLIP]], replace(REQUIREMENTS, signal_kind="nobody_knows_it"))
    with pytest.raises(ConditioningError, match=r"its signal is '.*csv' .a str., not a Signal"):
        check_rows([[replace(CLIP, signal="gaze.csv")]], REQUIREMENTS)
    with pytest.raises(ConditioningError, match=r"its grid is a tuple, not a VisualGrid"):
        check_rows([[replace(CLIP, grid=(2, 2, 3))]], REQUIREMENTS)


@pytest.mark.parametrize("kind", plugins.registry().names("signal_encoder"))
def test_every_encoder_that_ships_names_a_kind_that_can_be_checked(kind):
    assert isinstance(plugins.get("signal_encoder", kind).signal_kind, str)


def test_a_grid_without_visual_tokens_in_the_host_is_refused(modulation):
    host = qwen()
    with modulation.attached(host) as attachment:
        for places in ([], [-1, -1]):
            attachment.host.placeholders = lambda grid, places=places: places
            with (
                pytest.raises(
                    ConditioningError,
                    match="Row 0, clip 0: its grid has no visual token in this host",
                ),
                attachment.condition([[CLIP]]),
            ):
                pytest.fail("the block was entered")


AS = {
    "bool": lambda mask: mask,
    "int64": lambda mask: mask.long(),
    "uint8": lambda mask: mask.byte(),
    "float32": lambda mask: mask.float(),
    "bfloat16": lambda mask: mask.bfloat16(),
    "numpy bool": lambda mask: mask.numpy(),
    "numpy float": lambda mask: mask.double().numpy(),
    "lists": lambda mask: mask.tolist(),
    "lists of ints": lambda mask: mask.int().tolist(),
    "a list of tensors": lambda mask: list(mask),
    "collated": lambda mask: default_collate(list(mask)),
}


@pytest.mark.parametrize("form", AS)
def test_positions_of_bool_and_of_zero_and_one_mean_the_same(host, form):
    batch = inputs()
    modulation = strong(host)
    positions = batch["input_ids"] == VIDEO
    with modulation.attached(host) as attachment:
        with attachment.condition([[CLIP], [CLIP]]):
            expected = host(**batch).logits
        with attachment.condition([[CLIP], [CLIP]], positions=AS[form](positions)):
            assert torch.equal(host(**batch).logits, expected)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            torch.tensor([[0, 2]]),
            "`mask` must hold nothing but 0 and 1 .or bool.; row 0, position 1 is 2",
        ),
        (torch.tensor([[0.5, 1]]), "row 0, position 0 is 0.5"),
        (torch.tensor([[1, float("nan")]]), "row 0, position 1 is nan"),
        (torch.tensor([[0, -1]]), "row 0, position 1 is -1"),
        (torch.tensor([[0.0, torch.finfo(torch.float32).min]]), "row 0, position 1 is -3.4"),
        (torch.tensor([1, 0]), r"for 1 rows, got shape \(2,\)"),
        (torch.ones(1, 1, 2), r"for 1 rows, got shape \(1, 1, 2\)"),
        (torch.ones(2, 2), r"for 1 rows, got shape \(2, 2\)"),
        ([[True], [True, False]], "all of one length"),
        ([["yes"]], "`mask` must be"),
        ([[None]], "`mask` must be"),
        ("mask", "must be a tensor, .* got 'mask'"),
        (True, "must be a tensor, .* got True"),
        (torch.ones(1, 2, device="meta"), "in memory"),
        (torch.ones(1, 2).to_sparse(), "layout torch.sparse_coo"),
    ],
)
def test_masks_of_anything_else_are_refused(value, message):
    with pytest.raises(ConditioningError, match=message):
        as_mask("mask", value, 1)


def test_every_refusal_is_a_modulate_error():
    for rows in (0, object(), [object()], [[object()]], [[ClipInput(0, 0, 0)]], b"", {1}, [{1}]):
        with pytest.raises(ModulateError):
            check_rows(as_lists(rows), REQUIREMENTS)


def test_a_signal_on_another_clock_is_warned_of_once_by_row_clip_and_both_times(host, modulation):
    late = replace(CLIP, signal=CLIP.signal.moved(1000.0))
    empty = replace(CLIP, signal=CLIP.signal.blank())
    with modulation.attached(host) as attachment:
        # Empty signals and clips without one are silent: warnings are errors here.
        for rows in ([[CLIP], [empty]], [[empty], []]):
            with attachment.condition(rows):
                host(**inputs())
        message = (
            r"Row 1, clip 0: none of the 2 events of the gaze signal, at 1000\.00 to 1003\.00 s,"
            r" lies within 0\.00 to 3\.00 s"
        )
        with pytest.warns(SignalWarning, match=message) as caught:
            for _ in range(2):
                with attachment.condition([[CLIP], [late]]):
                    host(**inputs())
        assert len(caught) == 1 and caught[0].filename == __file__
        assert attachment.report().active_steps == (2, 0)
