"""Tokens of answers as a turn begins, by real chat templates and tokenizers."""

import pytest

from modulate.answers.continuations import Continuations, end_ids
from modulate.errors import DataError, HostError
from modulate.hosts.host import understand
from tests.contract.encodings import built
from tests.contract.processors import PROCESSORS

TEMPLATE = (
    "{% for message in messages %}{{ message.role }}:SPACE{% for part in message.content %}"
    "{{ part.text }}{% endfor %}END{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def continuations(end="<eos>", space=""):
    host = built("qwen2_5_vl")
    processor = PROCESSORS["qwen2_5_vl"]()
    processor.chat_template = TEMPLATE.replace("SPACE", space).replace("END", end)
    return Continuations(understand(host), processor), processor.tokenizer


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def test_an_answer_is_what_follows_the_prompt():
    found, tokenizer = continuations()
    (answer,) = found.of("Where", ["the.A"])
    assert answer.tolist() == ids(tokenizer, "the.A") and len(answer) == 3


def test_the_end_of_the_turn_is_the_template_s():
    found, tokenizer = continuations(end="<eos>\n")
    (answer,) = found.of("Where", ["the.A"], with_end=True)
    assert answer.tolist() == [*ids(tokenizer, "the.A"), tokenizer.eos_token_id]
    # A template may leave it out: then it is the first that the host stops at.
    found, tokenizer = continuations(end="\n")
    (answer,) = found.of("Where", ["the.A"], with_end=True)
    assert answer[-1] == tokenizer.eos_token_id


def test_what_the_template_puts_before_an_answer_belongs_to_it():
    found, tokenizer = continuations(space="\n")
    (answer,) = found.of("Where", ["the"])
    assert answer.tolist() == ids(tokenizer, "\nthe") and len(answer) == 2


def test_a_boundary_that_the_tokenizer_does_not_keep_leaves_the_answer_by_itself():
    found, tokenizer = continuations()
    # "assistant:" and the answer would be one word without the colon.
    template = TEMPLATE.replace("SPACE", "").replace("END", ".").replace("assistant:", "A")
    found._processor.chat_template = template
    (answer,) = found.of("Where", ["the"])
    assert answer.tolist() == ids(tokenizer, "the")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("", "'' is empty"),
        (" \n", "is empty"),
        ("kettle", "'kettle' cannot be scored"),
        ("the.kettle", "'the.kettle' cannot be scored"),
    ],
)
def test_an_empty_answer_and_one_with_unknown_tokens_are_refused(answer, message):
    found, _ = continuations()
    with pytest.raises(DataError, match=message):
        found.of("Where", [answer])


def test_the_tokens_that_end_a_turn_are_those_of_generation_and_of_the_tokenizer():
    host = built("qwen2_5_vl")
    tokenizer = PROCESSORS["qwen2_5_vl"]().tokenizer
    host.generation_config.eos_token_id = [9, 2]
    assert end_ids(host, tokenizer) == [9, 2]
    host.generation_config.eos_token_id = 9
    assert end_ids(host, tokenizer) == [9, tokenizer.eos_token_id]
    host.generation_config.eos_token_id = None
    tokenizer.eos_token = None
    with pytest.raises(HostError, match="names no token that ends a turn"):
        end_ids(host, tokenizer)
