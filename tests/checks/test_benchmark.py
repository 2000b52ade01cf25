"""`bench` measures time and memory, compares with the estimate, and leaves nothing behind."""

import torch

from modulate.checks.benchmark import Timing, most_alive


def test_a_timing_is_the_median_and_the_central_80_percent():
    assert Timing.of([3.0]) == Timing(3.0, 3.0, 3.0, 1)
    assert Timing.of([float(index) for index in range(11)]) == Timing(5.0, 1.0, 9.0, 11)


def test_the_peak_of_a_profile_counts_what_was_alive_at_once():
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profile:
        block = torch.empty(1 << 20, dtype=torch.uint8)
        del block
        second_block = torch.empty(3 << 20, dtype=torch.uint8)
    assert most_alive(profile) == 3 << 20 and second_block.nbytes == 3 << 20
