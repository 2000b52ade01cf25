"""Out-of-memory errors are recognized and summed up in one line."""

import pytest
import torch

from modulate.utils.out_of_memory import first_line, free_cached_memory, is_out_of_memory


def test_a_refused_cpu_allocation_is_out_of_memory():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**58, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)


def test_the_error_of_an_accelerator_is_out_of_memory_and_others_are_not():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."))
    with pytest.raises(RuntimeError) as shapes:
        torch.ones(2) @ torch.ones(3)
    assert not is_out_of_memory(shapes.value)


def test_only_the_first_sentence_of_a_message_is_used():
    assert (
        first_line(RuntimeError("CUDA out of memory. Tried to allocate 2.5 GiB. GPU 0 has\nmore"))
        == "CUDA out of memory"
    )
    assert first_line(RuntimeError("size 2.5 GiB\nat line 3. More")) == "size 2.5 GiB"


@pytest.mark.parametrize("used", [False, True])
def test_cached_memory_is_freed_if_an_accelerator_is_in_use(monkeypatch, used):
    calls = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: used)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("cache"))
    free_cached_memory()
    assert calls == ["cache"] * used
