"""Steps of clips under a recipe's sampling, without videos."""

from modulate.config.sections import Sampling
from modulate.data.sampled_steps import SampledSteps


def test_frames_are_merged_into_steps():
    two = SampledSteps(Sampling(fps=1.0, max_frames=4), frames_per_step=2)
    assert two((0.0, 3.0)).times == (0.5, 2.5)
    assert SampledSteps(Sampling(fps=1.0, max_frames=4), 1)((0.0, 3.0)).times == (0, 1, 2, 3)


def test_training_may_see_fewer_frames():
    steps = SampledSteps(Sampling(fps=1.0, max_frames=4, train_max_frames=2), 1)
    assert steps.training_differs
    assert (steps((0.0, 3.0)).steps, steps((0.0, 3.0), True).steps) == (4, 2)
    assert not SampledSteps(Sampling()).training_differs


def test_the_clock_of_the_recipe_is_obeyed():
    steps = SampledSteps(Sampling(fps=1.0, max_frames=2, clock="requested"))
    assert steps((0.0, 10.0)).spans == ((0.0, 2.0),)


def test_the_sampling_in_words():
    text = str(SampledSteps(Sampling(fps=1.0, max_frames=4, train_max_frames=2)))
    expected = "1 frames a second, at most 4 (2 in training), 2 to a step, clock: true"
    assert text == expected
