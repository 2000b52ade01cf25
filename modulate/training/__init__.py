"""Training: stages, the gradients of a step, optimizers and schedules, where a training is, samples
that go together.
"""
