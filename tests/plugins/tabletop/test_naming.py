"""Naming questions: what and which color, in two words that the frames alone do not reveal."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from modulate.errors import DataError
from modulate_tabletop.dataset import Tabletop, TabletopParams
from modulate_tabletop.make import jobs
from modulate_tabletop.naming import Naming
from modulate_tabletop.text import ATTRIBUTE, EASY, NAMING, VOCABULARY
from tests.samples import one_clip_sample

WORLD = {"train": 3, "val": 1, "test": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("naming") / "world"


def dataset(root, **params):
    made = Tabletop(TabletopParams(root=root, **WORLD, **params))
    made.prepare()
    return made


def by_moment(samples, task):
    return {(s.clip.file.stem, s.extra["time"]): s for s in samples if s.task == task}


def test_a_name_is_the_answer_of_the_two_questions_at_its_moment(root):
    own = by_moment(dataset(root, tasks=(EASY,)).samples("all"), EASY)
    colors = by_moment(dataset(root, tasks=(ATTRIBUTE,)).samples("all"), ATTRIBUTE)
    names = by_moment(dataset(root, tasks=(NAMING,)).samples("all"), NAMING)
    assert names.keys() == own.keys() and len(names) > 20
    for moment, sample in names.items():
        color, kind = colors[moment], own[moment]
        expected = f"{color.options[color.answer]} {kind.options[kind.answer]}"
        assert sample.options[sample.answer] == expected
        assert sample.clip == own[moment].clip and sample.groups == own[moment].groups
        assert len(set(sample.options)) == 4
        assert all(word in VOCABULARY for option in sample.options for word in option.split())


def test_ids_are_unique_and_other_tasks_keep_their_samples(root):
    both = dataset(root, tasks=(EASY, NAMING)).samples("train")
    assert len({sample.id for sample in both}) == len(both)
    easy = dataset(root, tasks=(EASY,)).samples("train")
    assert [sample for sample in both if sample.task == EASY] == easy
    assert Counter(sample.task for sample in both) == {EASY: len(easy), NAMING: len(easy)}


def test_the_questions_are_the_same_again_and_in_the_fingerprint(root):
    first, second = (dataset(root, tasks=(NAMING,)) for _ in range(2))
    assert first.samples("test") == second.samples("test")
    assert first.fingerprint() == second.fingerprint()
    assert first.fingerprint() != dataset(root, tasks=(EASY,)).fingerprint()


def test_a_limit_counts_all_tasks(root):
    limited = dataset(root, tasks=(EASY, NAMING), max_per_split=6).samples("train")
    assert len(limited) == 6 and {sample.task for sample in limited} == {EASY, NAMING}


def test_the_answer_is_at_every_place_and_no_option_gives_it_away():
    """Of many worlds without videos: positions and properties of the right option."""
    videos = jobs(150, 0, 0, 3)
    naming = Naming(videos)
    places = Counter()
    shares = Counter()
    total = 0
    for job in videos:
        clip = job.clip()
        for dwell in clip.asked():
            sample = naming.ask(_easy(job.stem, int(dwell.asked)))
            places[sample.answer] += 1
            # A blind guesser may prefer options that share a color or class with another.
            words = [option.split() for option in sample.options]
            for i, pair in enumerate(words):
                alike = any(set(pair) & set(other) for j, other in enumerate(words) if j != i)
                shares[alike, i == sample.answer] += 1
            total += 1
    assert total > 500
    assert all(abs(places[i] / total - 0.25) < 0.06 for i in range(4))
    for alike in (True, False):
        asked = shares[alike, True] + shares[alike, False]
        assert abs(shares[alike, True] / asked - 0.25) < 0.06


def _easy(stem, time):
    sample = one_clip_sample(f"{EASY}/{stem}/{time}", Path(f"{stem}.mp4"))
    return replace(sample, task=EASY, extra={"time": time})


def test_questions_of_another_world_are_refused(root):
    naming = Naming(jobs(**WORLD, seed=0))
    with pytest.raises(DataError, match="no video of a tabletop world"):
        naming.ask(_easy("other_0001", 12))
    with pytest.raises(DataError, match="no question of a tabletop world"):
        naming.ask(_easy("tabletop_0001", 1))
