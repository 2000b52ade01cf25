"""Scores of generated text, against published examples and the libraries themselves."""

import sys

import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import sentence_bleu

from modulate.errors import PluginError
from modulate.evaluation import text_scores
from modulate.evaluation.text_scores import exact_match, normalize, score_text, token_f1


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Red\tPlate.", "red plate"),
        ("An apple, a day!", "apple day"),
        ("theatre", "theatre"),
        ("Rote Schüssel", "rote schüssel"),
        ("the", ""),
    ],
)
def test_texts_are_normalized_as_squad_does(text, normal):
    assert normalize(text) == normal


def test_an_answer_of_articles_alone_is_still_compared():
    assert exact_match(" a", "A") and not exact_match("the", "A") and not exact_match("", "A")
    assert token_f1("a", "A") == 1.0 and token_f1("", "A") == 0.0


def test_token_f1_counts_words_in_common_with_repetitions():
    # Precision 2/3, recall 2/2.
    assert token_f1("a red red plate", "red plate") == pytest.approx(2 * 2 / (3 + 2))
    assert token_f1("blue cup", "red plate") == 0.0
    assert token_f1("plate red", "red plate") == 1.0 and not exact_match("plate red", "red plate")


def test_bleu_and_rouge_are_those_of_the_libraries():
    text, answer = "the viewer looks at a red plate", "the viewer is looking at the red plate"
    scores = score_text(text, [answer])
    assert scores.bleu == pytest.approx(
        sentence_bleu(text, [answer], use_effective_order=True).score / 100
    )
    rouge = RougeScorer(["rougeL"]).score(answer, text)["rougeL"]
    assert scores.rouge_l == pytest.approx(rouge.fmeasure)
    assert 0 < scores.bleu < scores.rouge_l < 1


def test_every_score_is_its_own_best_over_the_accepted_answers():
    answers = ["red plate", "plate red on top of the table"]
    both = score_text("plate red", answers)
    single = [score_text("plate red", [answer]) for answer in answers]
    for name in text_scores.METRIC_NAMES:
        assert getattr(both, name) == max(getattr(scores, name) for scores in single)
    assert both.token_f1 == 1.0 and both.exact_match == 0.0


def test_perfect_and_empty_texts_have_the_extreme_scores():
    for answer in ("red plate", "cup", "ein Stück Brot", "赤い皿"):
        perfect = score_text(answer, [answer])
        assert (perfect.exact_match, perfect.token_f1, perfect.rouge_l) == (1.0, 1.0, 1.0)
        assert perfect.bleu == pytest.approx(1.0) and perfect.bleu <= 1.0
        assert set(vars(score_text("", [answer])).values()) == {0.0}


def test_scores_are_written_with_six_decimals():
    third = score_text("red red plate", ["red plate on table"]).rounded()
    assert third.token_f1 == 0.571429


def test_signatures_name_the_releases_of_the_libraries():
    found = text_scores.signatures()
    assert found["bleu"].startswith("sentence|nrefs:1|") and "version:" in found["bleu"]
    assert "version:" in found["rouge_l"]


@pytest.mark.parametrize("library", ["sacrebleu", "rouge_score"])
def test_a_missing_library_is_named_with_the_extra_that_brings_it(library, monkeypatch):
    monkeypatch.setattr(text_scores, "_bleu", text_scores._bleu.__wrapped__)
    monkeypatch.setattr(text_scores, "_rouge_l", text_scores._rouge_l.__wrapped__)
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PluginError, match=r"pip install 'modulate\[text\]'"):
        text_scores.require_libraries()
