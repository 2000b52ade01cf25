"""Check what the splits of a data set have in common, and questions that are asked twice."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from modulate.interfaces.inspection import Inspection, place_of
from modulate.interfaces.sample import Sample
from modulate.utils.atomic_files import same_content

Splits = Mapping[str, Sequence[Sample]]


def check_leaks(inspection: Inspection, samples: Splits) -> None:
    """Add findings on videos, pictures and groups in two splits, and on repeated questions."""
    _check_numbers(inspection, samples)
    _check_files(inspection, samples)
    _check_groups(inspection, samples)
    _check_repeated(inspection, samples)


def _check_numbers(inspection: Inspection, samples: Splits) -> None:
    items = samples.get("test", ())
    if items and len({sample.files for sample in items}) == 1:
        inspection.add(
            "warning",
            "The test split shows one video only: the control `shuffled`, which needs another"
            " clip's signal, fails on it, and no interval can be given.",
        )


def _check_files(inspection: Inspection, samples: Splits) -> None:
    places: dict[str, dict[str, str]] = defaultdict(dict)
    names = same_content(
        {clip.file for items in samples.values() for s in items for clip in s.clips}
    )
    for split, items in samples.items():
        for sample in items:
            for clip in sample.clips:
                places[names[clip.file]].setdefault(split, f"{clip.file.name} {place_of(sample)}")
    rows = [_shared(found) for found in places.values() if len(found) > 1]
    if rows:
        inspection.add(
            "warning",
            f"{len(rows)} videos or pictures are in more than one split: accuracies on what"
            " training has seen say little.",
            rows,
        )


def _shared(found: Mapping[str, str]) -> str:
    return "; ".join(f"{split}: {where}" for split, where in found.items())


def _check_groups(inspection: Inspection, samples: Splits) -> None:
    found: dict[str, dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for split, items in samples.items():
        for sample in items:
            for group, value in sample.groups.items():
                found[group][value].setdefault(split, place_of(sample))
    for group, values in sorted(found.items()):
        rows = [
            f"{value}: {_shared(places)}" for value, places in values.items() if len(places) > 1
        ]
        if rows and group != "video":
            inspection.add(
                "info",
                f"{len(rows)} of {len(values)} values of {group!r} are in several splits.",
                rows,
            )


def _check_repeated(inspection: Inspection, samples: Splits) -> None:
    first: dict[object, Sample] = {}
    repeated: list[str] = []
    contradicting: list[str] = []
    for sample in (sample for items in samples.values() for sample in items):
        clips = tuple((clip.file, clip.window) for clip in sample.clips)
        earlier = first.setdefault((clips, sample.question, sample.options), sample)
        if earlier is sample:
            continue
        text = f"{place_of(sample)}: as {place_of(earlier)}"
        same = (earlier.answer, earlier.answers) == (sample.answer, sample.answers)
        (repeated if same else contradicting).append(text)
    if repeated:
        inspection.add("info", f"{len(repeated)} questions repeat an earlier one.", repeated)
    if contradicting:
        inspection.add(
            "warning",
            f"{len(contradicting)} questions repeat an earlier one, but with another answer.",
            contradicting,
        )
