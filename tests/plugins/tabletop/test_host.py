"""The small host that ships: its files, and its answers through the real processor."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

import modulate_tabletop
from modulate_tabletop import text
from modulate_tabletop.small_host import accuracy, lessons, packing, steering_bound
from modulate_tabletop.small_host.host_files import ID

HOST = Path(modulate_tabletop.__file__).parent / "host"


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread: many small forward passes are slower on several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(HOST)


@pytest.fixture(scope="module")
def host() -> Any:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(HOST).eval()


def encode(processor: Any, frames: np.ndarray, question: str) -> Any:
    content = [{"type": "video"}, {"type": "text", "text": question}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    metadata = {
        "total_num_frames": len(frames),
        "fps": 1.0,
        "frames_indices": list(range(len(frames))),
        "duration": float(len(frames)),
    }
    videos = [frames.transpose(0, 3, 1, 2)]
    return processor(
        text=[prompt],
        videos=videos,
        video_metadata=[metadata],
        do_sample_frames=False,
        return_tensors="pt",
    )


def test_the_weights_are_small() -> None:
    assert (HOST / "model.safetensors").stat().st_size <= 10_000_000


def test_letters_and_words_are_single_tokens_and_nothing_crashes(processor: Any) -> None:
    tokens = processor.tokenizer
    for word in (*text.LETTERS, "Yes", "No", *lessons.CLASSES, *lessons.COLOR_WORDS):
        assert tokens(word)["input_ids"] == [ID[word]]
    for prompt in (
        text.with_options(text.question_easy(17), ["mug", "box", "tray", "cone"]),
        text.without_options(text.question_attribute(7)),
        text.DESCRIBE,
    ):
        assert tokens.unk_token_id not in tokens(prompt)["input_ids"]
    assert tokens("Überraschung 12345 <img>")["input_ids"][0] == tokens.unk_token_id


def test_a_step_has_one_token_for_each_place(processor: Any) -> None:
    inputs = encode(processor, np.zeros((8, 128, 128, 3), np.uint8), "Describe the table.")
    assert inputs["video_grid_thw"].tolist() == [[4, 8, 8]]
    assert int((inputs["input_ids"] == ID["<|video_pad|>"]).sum()) == 4 * 16


def test_packed_training_gives_the_processors_numbers(processor: Any, host: Any) -> None:
    item = lessons.random_lesson(np.random.default_rng(3), 4, True)
    question, options, _ = lessons.questions(np.random.default_rng(4), item, int(item.marks[-1]))[
        text.EASY
    ]
    inputs = encode(processor, item.frames, text.with_options(question, options))
    in_words = packing.Branch("a", text.without_options(question), "mug")
    in_letters = packing.Branch("b", text.with_options(question, options), "A")
    packed = packing.Packer(processor.tokenizer).pack([[in_words, in_letters]], 4, 2.0, 0)
    with torch.no_grad():
        real = host(**inputs).logits[0, -1]
        ours, *_ = packing.forward(host, packed, inputs["pixel_values_videos"], 4)
    torch.testing.assert_close(ours[1], real, atol=1e-3, rtol=1e-3)


def test_the_host_answers_about_marked_objects_in_words(processor: Any, host: Any) -> None:
    rng = np.random.default_rng(17)
    right = []
    for _ in range(24):
        item = lessons.random_lesson(rng, 4, True)
        asked = lessons.questions(rng, item, int(item.marks[-1]))
        for question, options, answer in (asked[text.EASY], asked[text.ATTRIBUTE]):
            with torch.no_grad():
                logits = host(
                    **encode(processor, item.frames, text.without_options(question))
                ).logits[0, -1]
            right.append(options[int(logits[[ID[word] for word in options]].argmax())] == answer)
    assert np.mean(right) >= 0.85


def test_without_a_mark_the_host_is_near_chance(processor: Any, host: Any) -> None:
    rng = np.random.default_rng(18)
    right = []
    for _ in range(40):
        item = lessons.random_lesson(rng, 4, False)
        question, options, answer = lessons.questions(
            rng, item, int(rng.choice(np.flatnonzero(item.kinds[-1] >= 0)))
        )[text.EASY]
        with torch.no_grad():
            logits = host(**encode(processor, item.frames, text.without_options(question))).logits[
                0, -1
            ]
        right.append(options[int(logits[[ID[word] for word in options]].argmax())] == answer)
    assert np.mean(right) < 0.55


def test_its_accuracy_is_as_its_readme_says(processor: Any, host: Any) -> None:
    found = accuracy.accuracies(host, packing.Packer(processor.tokenizer), steps=4, batches=2)
    drawn = [value for key, value in found.items() if key.startswith("drawn")]
    named = [found[f"pointed word {task}"] for task in (text.EASY, text.HARD, text.ATTRIBUTE)]
    assert len(drawn) == 8 and min(drawn) >= 0.85 and min(named) >= 0.85
    assert max(found[f"pointed {answer} {text.ALERT}"] for answer in ("word", "letter")) < 0.75, (
        "better than its README says"
    )


@pytest.mark.parametrize("steps", [1, 4])
def test_a_pointer_at_the_gazed_token_steers_the_host(
    processor: Any, host: Any, steps: int
) -> None:
    found = steering_bound.report(host, packing.Packer(processor.tokenizer), steps=steps, count=24)
    assert min(found["pointer"].values()) >= 0.9 and max(found["unmarked"].values()) < 0.5
    assert found["norms"]["tokens"] < 8, "small enough for a residual that starts at zero"
