"""Scores of generated text: exact match, token F1, BLEU and ROUGE-L, for single answers.

Exact match and token F1 are those of SQuAD, for texts of any alphabet. BLEU is sacrebleu's for
sentences, ROUGE-L rouge-score's; both libraries come with the extra ``text``. Imports no torch.
"""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from modulate.config.sections import MainMetric, TextMetric
from modulate.errors import PluginError

METRIC_NAMES: Mapping[TextMetric, str] = {
    "exact_match": "exact match",
    "token_f1": "token F1",
    "bleu": "BLEU",
    "rouge_l": "ROUGE-L",
}
"""What reports call each score of text."""

ROUGE_SIGNATURE = "rougeL|fmeasure|stemmer:no|tok:unicode-words"

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WORD = re.compile(r"[^\W_]+")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def figure_name(metric: MainMetric) -> str:
    """Return what reports call a run's main figure."""
    return "accuracy" if metric == "accuracy" else METRIC_NAMES[metric]


@dataclass(frozen=True)
class TextScores:
    """Scores in [0, 1] of one text, each the best over the accepted answers."""

    exact_match: float
    token_f1: float
    bleu: float
    rouge_l: float

    def rounded(self) -> "TextScores":
        """Return the scores with six decimals, as files hold them."""
        return TextScores(**{name: round(value, 6) for name, value in asdict(self).items()})


def normalize(text: str) -> str:
    """Return ``text`` in lower case, without punctuation and articles, with single spaces.

    Source: the evaluation script of SQuAD 1.1 (Rajpurkar et al., arXiv 1606.05250), which knows
    English articles and ASCII punctuation only.
    """
    text = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(text: str, answer: str) -> bool:
    """Return whether ``text`` is ``answer``, normalized.

    An answer of which nothing would be left, such as "A", is compared in lower case only.
    """
    wanted = normalize(answer)
    if not wanted:
        return text.strip().lower() == answer.strip().lower()
    return normalize(text) == wanted


def token_f1(text: str, answer: str) -> float:
    """Return the F1 of the normalized words of ``text`` and ``answer``, counted with repetitions.

    Without a word in common, it is exact match.
    """
    given = normalize(text).split()
    wanted = normalize(answer).split()
    common = (Counter(given) & Counter(wanted)).total()
    if not common:
        return float(exact_match(text, answer))
    return 2 * common / (len(given) + len(wanted))


def score_text(text: str, answers: Sequence[str]) -> TextScores:
    """Return the scores of a generated ``text`` against one or more accepted ``answers``.

    Raises :class:`PluginError` if sacrebleu or rouge-score is not installed.
    """
    scores = [_against(text, answer) for answer in answers]
    return TextScores(
        **{name: max(getattr(score, name) for score in scores) for name in METRIC_NAMES}
    )


def _against(text: str, answer: str) -> TextScores:
    rouge = _rouge_l().score(answer, text)["rougeL"].fmeasure
    bleu = _bleu().sentence_score(text, [answer]).score / 100
    return TextScores(
        exact_match=float(exact_match(text, answer)),
        token_f1=token_f1(text, answer),
        # Rounding may bring a perfect score above 1.
        bleu=min(1.0, bleu),
        rouge_l=float(rouge),
    )


def signatures() -> dict[str, str]:
    """Return how BLEU and ROUGE-L were computed, with the libraries' releases."""
    from importlib.metadata import version

    # sacrebleu knows its number of references only after a score.
    _bleu().sentence_score("a", ["a"])
    return {
        "bleu": f"sentence|{_bleu().get_signature()}",
        "rouge_l": f"{ROUGE_SIGNATURE}|version:{version('rouge-score')}",
    }


def require_libraries() -> None:
    """Raise :class:`PluginError` if the libraries for text are not installed."""
    _bleu()
    _rouge_l()


@cache
def _bleu() -> Any:
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise _missing("sacrebleu") from error
    # Without effective order, every answer of fewer than four words would score about 0.
    return BLEU(effective_order=True)


@cache
def _rouge_l() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise _missing("rouge-score") from error
    return RougeScorer(["rougeL"], tokenizer=_Words())


class _Words:
    """Words in any alphabet; rouge-score's own tokenizer knows only the letters a to z."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.lower())


def _missing(library: str) -> PluginError:
    return PluginError(f"Scores of text need the library {library}: pip install 'modulate[text]'")
