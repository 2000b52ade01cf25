"""Check what samples ask, how their answers are distributed, and that a recipe can score them."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from modulate.checks.findings import CheckReport, Level
from modulate.checks.meta_tensors import META
from modulate.errors import ModulateError
from modulate.evaluation.scoring import require_scorable
from modulate.evaluation.text_scores import require_libraries
from modulate.inference.pipeline import Pipeline
from modulate.interfaces.inspection import FindingsTable, Inspection
from modulate.interfaces.prompt import LETTERS
from modulate.interfaces.sample import Sample

BEYOND_CHANCE = 3.0
"""Standard errors above chance from which one position of the right option is suspicious."""

CUT_SHARE = 0.01
"""Share of answers longer than ``max_new_tokens`` above which a check warns."""

COLUMNS = ("task", "split", "number", "files", "options", "right option", "commonest answer")


def check_answers(inspection: Inspection, samples: Mapping[str, Sequence[Sample]]) -> None:
    """Add a table of questions by task and split, and findings on their answers."""
    rows = []
    figures: dict[str, dict[str, Any]] = {}
    for task in dict.fromkeys(sample.task for items in samples.values() for sample in items):
        for split, items in samples.items():
            asked = [sample for sample in items if sample.task == task]
            if not asked:
                continue
            found = _figures(asked)
            figures.setdefault(task, {})[split] = found
            rows.append((task, split, *_cells(found)))
            _check_balance(inspection, task, split, found)
    inspection.figures["questions"] = figures
    if rows:
        inspection.tables.append(
            FindingsTable(
                "Questions by task and split",
                COLUMNS,
                tuple(rows),
                "right option: how often each position is right, from the first on. commonest"
                " answer: the text that is right most often; a blind model could learn it.",
            )
        )
    _check_forms(inspection, [sample for items in samples.values() for sample in items])


def _figures(asked: Sequence[Sample]) -> dict[str, Any]:
    """Return the numbers of one task in one split."""
    choices = [sample for sample in asked if sample.options]
    counts = Counter(len(sample.options) for sample in choices)
    positions = Counter(sample.answer for sample in choices if sample.answer is not None)
    texts = Counter(_answer(sample) for sample in asked)
    texts.pop("", None)
    most = texts.most_common(1)
    return {
        "number": len(asked),
        "files": len(frozenset().union(*(sample.files for sample in asked))),
        "free_text": len(asked) - len(choices),
        "options": dict(sorted(counts.items())),
        "right_option": [positions[place] for place in range(max(counts, default=0))],
        "different_answers": len(texts),
        "commonest_answer": list(most[0]) if most else None,
        "chance": sum(n / options for options, n in counts.items()) / len(choices)
        if choices
        else None,
    }


def _answer(sample: Sample) -> str:
    """Return the text of the right answer; an empty one if it is not known."""
    if sample.options:
        return sample.options[sample.answer] if sample.answer is not None else ""
    return sample.answers[0] if sample.answers else ""


def _cells(found: Mapping[str, Any]) -> tuple[str, ...]:
    options = ", ".join(f"{n}" for n in found["options"])
    if found["free_text"]:
        options = f"{options} and free text" if options else "free text"
    most = found["commonest_answer"]
    share = f"{100 * most[1] / found['number']:.0f} %" if most else ""
    return (
        f"{found['number']:,}",
        f"{found['files']:,}",
        options,
        " ".join(map(str, found["right_option"])) or "–",
        f"{most[0][:30]} ({share})" if most else "–",
    )


def _check_balance(inspection: Inspection, task: str, split: str, found: Mapping[str, Any]) -> None:
    positions = found["right_option"]
    total = sum(positions)
    if total == 0:
        return
    chance = found["chance"]
    share = max(positions) / total
    if share - chance > BEYOND_CHANCE * math.sqrt(chance * (1 - chance) / total):
        place = positions.index(max(positions)) + 1
        inspection.add(
            "warning",
            f"{task}, {split}: option {place} is right in {100 * share:.0f} % of {total} questions;"
            f" chance is {100 * chance:.0f} %. Shuffle the options: a blind model could score as"
            " much.",
        )


def _check_forms(inspection: Inspection, samples: Sequence[Sample]) -> None:
    free = sum(sample.is_free_text for sample in samples)
    if 0 < free < len(samples):
        inspection.add(
            "warning",
            f"{free} of {len(samples)} questions have no options: a recipe's `answer` suits either"
            " those with options, or free text.",
        )
    unknown = sum(not _answer(sample) for sample in samples)
    if unknown:
        inspection.add("error", f"{unknown} of {len(samples)} questions have no known answer.")
    many = sum(len(sample.options) > len(LETTERS) for sample in samples)
    if many:
        inspection.add(
            "info",
            f"{many} questions have more than {len(LETTERS)} options, the most that `answer:"
            " letter` has letters for; `answer: likelihood` takes any number.",
        )


# --- in the form of a recipe


def check_answer_forms(
    report: CheckReport, pipeline: Pipeline, samples: Mapping[str, Sequence[Sample]]
) -> None:
    """Add findings on what host, libraries and samples allow under the recipe's ``answer``.

    They are what training and evaluation would fail with. No video is read.
    """
    recipe = pipeline.recipe
    try:
        # Nothing can be computed on meta tensors.
        if pipeline.device != META:
            require_scorable(pipeline)
        elif recipe.answer == "text":
            require_libraries()
    except ModulateError as error:
        report.add("error", str(error))
    lengths: list[int] = []
    for split, items in samples.items():
        failed: list[str] = []
        for sample in items:
            try:
                answers = pipeline.answer_ids(sample, known=True)
            except ModulateError as error:
                failed.append(str(error))
            else:
                lengths += [len(answer) for answer in answers]
        if failed:
            too_many = len(failed) > recipe.evaluation.max_failed_share * len(items)
            level: Level = "error" if too_many else "warning"
            report.add(
                level,
                f"{len(failed)} of {len(items)} samples of the split {split} cannot be answered"
                f" under `answer: {recipe.answer}`. {failed[0]}",
            )
    if lengths and (recipe.answer == "text" or recipe.scores_whole_options):
        _lengths(report, pipeline, lengths)


def _lengths(report: CheckReport, pipeline: Pipeline, lengths: Sequence[int]) -> None:
    recipe = pipeline.recipe
    what = "answers, with the end of the turn" if recipe.answer == "text" else "options"
    report.figures["tokens of an answer"] = (
        f"{sum(lengths) / len(lengths):.1f} on average, {max(lengths)} at most ({what})"
    )
    if recipe.answer != "text":
        return
    report.add(
        "info",
        "Costs are those of the prompts: up to evaluation.max_new_tokens"
        f" ({recipe.evaluation.max_new_tokens}) further forwards of one token for each batch come"
        " on top in an evaluation.",
    )
    most = recipe.evaluation.max_new_tokens
    cut = sum(length > most for length in lengths)
    if cut > CUT_SHARE * len(lengths):
        report.add(
            "warning",
            f"{cut} of {len(lengths)} reference answers are longer than evaluation.max_new_tokens"
            f" ({most}), so that the host cannot give them; raise it to {max(lengths)}.",
        )
