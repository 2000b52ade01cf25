"""Splits of a table's questions: given ones checked for leaks, drawn ones without. No torch."""

import hashlib
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from modulate.errors import DataError
from modulate.utils.atomic_files import same_content
from modulate_table.params import SPLITS, UNUSED, TableParams
from modulate_table.rows import Question

Unit = tuple[str, str]
"""What must not be in two splits: ("file", its name or content), or (column, value)."""


def assign_splits(
    questions: Sequence[Question], params: TableParams, root: Path
) -> dict[str, list[Question]]:
    """Return the questions of each split, and those under ``unused``, in their order.

    Raises :class:`DataError` if a given split shows a video in two splits, unless that is allowed,
    or if a drawn one has fewer groups than splits.
    """
    by = params.split.by or ("given" if any(question.split for question in questions) else "seed")
    if by == "given":
        if not any(question.split for question in questions):
            raise DataError(
                "split: {by: given} needs a column `split`, `files` by split, or a data set that"
                " has splits; the table has none."
            )
        splits = [question.split or UNUSED for question in questions]
        if not params.allow_shared_videos:
            _refuse_leaks(questions, splits)
    else:
        splits = _drawn(questions, params, root, hashed=by == "hash")
    found: dict[str, list[Question]] = {name: [] for name in (*SPLITS, UNUSED)}
    for question, split in zip(questions, splits, strict=True):
        found[split].append(question)
    return found


def units(question: Question, names: Mapping[Path, str]) -> list[Unit]:
    """Return what the question has in common with others.

    ``names``: a name of each file, which copies of it share.
    """
    files: list[Unit] = [("file", names[clip.file]) for clip in question.clips]
    return files + list(question.units.items())


def leaks(questions: Sequence[Question], splits: Sequence[str]) -> list[str]:
    """Return what is in two splits, a sentence each."""
    names = _names(questions)
    first: dict[Unit, tuple[str, Question]] = {}
    found: dict[Unit, str] = {}
    for question, split in zip(questions, splits, strict=True):
        if split == UNUSED:
            continue
        for place, unit in enumerate(units(question, names)):
            earlier, other = first.setdefault(unit, (split, question))
            if earlier != split and unit not in found:
                # The files come first.
                is_file = place < len(question.clips)
                what = question.clips[place].file.name if is_file else " ".join(unit)
                found[unit] = (
                    f"{what} is in {earlier} ({other.place}) and in {split} ({question.place})"
                )
    return list(found.values())


def _names(questions: Sequence[Question]) -> dict[Path, str]:
    return same_content({clip.file for question in questions for clip in question.clips})


def _refuse_leaks(questions: Sequence[Question], splits: Sequence[str]) -> None:
    found = leaks(questions, splits)
    if found:
        raise DataError(
            f"{len(found)} videos, pictures or groups are in more than one split: {found[0]}."
            " Accuracies on such splits say little. Assign whole videos, or let `split: {by: seed}`"
            " do it; `allow_shared_videos: true` accepts them."
        )


def _drawn(
    questions: Sequence[Question], params: TableParams, root: Path, hashed: bool
) -> list[str]:
    """Return a split for each question; connected ones get the same."""
    keys = _connected(questions, root)
    if hashed:
        named = {key: _by_hash(key, params) for key in set(keys)}
    else:
        named = _by_seed(sorted(set(keys)), params)
    return [named[key] for key in keys]


def _connected(questions: Sequence[Question], root: Path) -> list[str]:
    """Return for each question the name of its group: questions that share a unit have the same.

    The name is the first of the group's values of `split.groups`, or of its files.
    """
    names = _names(questions)
    of_questions = [units(question, names) for question in questions]
    parents: dict[Unit, Unit] = {}

    def find(unit: Unit) -> Unit:
        parents.setdefault(unit, unit)
        while parents[unit] != unit:
            parents[unit] = parents[parents[unit]]
            unit = parents[unit]
        return unit

    for first, *others in of_questions:
        for other in others:
            parents[find(other)] = find(first)
    groups: dict[Unit, str] = {}
    for question, own in zip(questions, of_questions, strict=True):
        top = find(own[0])
        for name in _group_names(question, root):
            groups[top] = min(groups.get(top, name), name)
    return [groups[find(own[0])] for own in of_questions]


def _group_names(question: Question, root: Path) -> list[str]:
    """Return names for the question's group that do not depend on where the data set lies."""
    if question.units:
        return [f"{what}={value}" for what, value in question.units.items()]
    files = [clip.file for clip in question.clips]
    return [
        file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
        for file in files
    ]


def _shares(params: TableParams) -> dict[str, float]:
    """Return the share of each split that has one, in the order of the splits."""
    shares = {str(name): share for name, share in params.split.shares.items()}
    return {name: shares[name] for name in SPLITS if name in shares}


def _by_hash(key: str, params: TableParams) -> str:
    digest = hashlib.sha256(f"{params.split.seed}:{key}".encode()).digest()
    point = int.from_bytes(digest[:8]) / 2**64
    shares = _shares(params)
    for name, share in shares.items():
        point -= share
        if point < 0:
            return name
    # Shares add up to 1 but for rounding.
    return list(shares)[-1]


def _by_seed(groups: list[str], params: TableParams) -> dict[str, str]:
    shares = _shares(params)
    if len(groups) < len(shares):
        raise DataError(
            f"{len(groups)} groups of videos cannot be split into {', '.join(shares)}: each needs"
            " one at least. Give fewer `shares`, or a column `split` with allow_shared_videos:"
            " true."
        )
    random.Random(params.split.seed).shuffle(groups)
    counts = _counts(len(groups), shares)
    names = [name for name, count in counts.items() for _ in range(count)]
    return dict(zip(groups, names, strict=True))


def _counts(total: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Return whole numbers that add up to ``total``, as close to the shares as possible, none 0."""
    counts = {name: max(1, int(share * total)) for name, share in shares.items()}
    while sum(counts.values()) != total:
        step = 1 if sum(counts.values()) < total else -1
        # The split that is farthest from its share gives or takes.
        name = max(
            (name for name in counts if counts[name] + step > 0),
            key=lambda name: step * (shares[name] * total - counts[name]),
        )
        counts[name] += step
    return counts
