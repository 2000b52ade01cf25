"""Groups of samples that show files in common."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from modulate.data.video_groups import with_video_groups
from modulate.interfaces.sample import Sample, SampleClip


def sample(id_, files, **groups):
    return Sample(id_, "task", tuple(SampleClip(Path(f)) for f in files), "?", groups=groups)


def test_samples_that_share_a_file_also_through_others_share_a_group():
    given_ = [
        sample("1", "a"),
        sample("2", "b"),
        sample("3", "ca"),
        sample("4", "d", viewer="x"),
        sample("5", "bc"),
        sample("6", "a", video="own"),
    ]
    found = with_video_groups(given_)
    assert [s.groups["video"] for s in found] == ["1", "1", "1", "4", "1", "own"]
    assert found[3].groups["viewer"] == "x" and found[5] is given_[5]
    assert given_[0].groups == {}


@given(st.lists(st.text("abcdefg", min_size=1, max_size=3), min_size=1, max_size=12))
def test_groups_are_the_connected_parts_of_the_samples(files):
    found = [
        s.groups["video"]
        for s in with_video_groups([sample(f"{i}", f) for i, f in enumerate(files)])
    ]
    linked = [[bool(set(a) & set(b)) for b in files] for a in files]
    for _ in files:  # the transitive closure, by brute force
        linked = [
            [any(x and linked[k][j] for k, x in enumerate(row)) for j in range(len(files))]
            for row in linked
        ]
    assert [[a == b for b in found] for a in found] == linked
