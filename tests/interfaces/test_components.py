"""Default behavior of the component interfaces."""

import pytest

from modulate.errors import DataError
from modulate.interfaces.components import Dataset, Modulator, Reference
from modulate.interfaces.params import ComponentSpec
from modulate.interfaces.prompt import LETTERS
from modulate.interfaces.writer import Projection
from modulate_gaze.scanpath import Scanpath
from modulate_tabletop.dataset import Tabletop
from tests.samples import one_clip_sample


@pytest.fixture
def dataset(tmp_path):
    return Tabletop(Tabletop.Params(root=tmp_path))


def sample(options):
    return one_clip_sample("q1", window=(2.0, 5.0), question="What is it?", options=tuple(options))


def test_the_prompt_offers_every_option_by_its_letter(dataset):
    text = Dataset.prompt(dataset, sample(["a cup", "a knife", "a plate"]))
    assert (
        text == "Question: What is it?\nOptions:\nA. a cup\nB. a knife\nC. a plate\n\nThe best"
        " option is:"
    )
    assert (
        Dataset.prompt(dataset, sample(["a cup", "a knife"]), answer="word")
        == "Question: What is it?\nThe answer is:"
    )


def test_there_are_letters_for_eight_options(dataset):
    assert Dataset.prompt(dataset, sample(LETTERS)).count("\n") == 11
    with pytest.raises(DataError, match="9 options are offered; there are letters for 8"):
        Dataset.prompt(dataset, sample("abcdefghi"))


def test_a_sample_has_the_events_that_overlap_its_window(dataset):
    path = Scanpath(
        [(0.1, 0.1, 1.0, 0.5), (0.2, 0.2, 2.1, 0.5), (0.3, 0.3, 4.0, 0.5), (0.4, 0.4, 6.0, 0.5)]
    )
    own = sample("ab")
    found = Dataset.clip_signal(dataset, own, own.clip, path)
    assert found.fixations[:, 2].tolist() == [2.1, 4.0]


def test_by_default_a_data_set_has_no_reference_and_generates_nothing(dataset):
    assert Dataset.reference(dataset) == Reference({}, (), ())
    assert Dataset.prepare(dataset) is None


def test_by_default_every_layer_has_a_linear_writer_of_zeros():
    modulator = ComponentSpec(name="gaze_resampler", params={"width": 16, "latents": 4}).build(
        "modulator", d_features=12, d_signal=8, n_layers=3
    )
    writer = Modulator.writer(modulator, 0, 5)
    assert type(writer) is Projection
    assert writer.weight.shape == (5, modulator.d_latent)
    assert not writer.weight.any()
    assert Modulator.shared_output is False
