"""Training: stages, the gradients of a step, optimisers and schedules, where a training is, samples that go together."""
