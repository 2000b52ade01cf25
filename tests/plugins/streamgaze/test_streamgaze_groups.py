"""Participants, original data sets, and the splits that do not divide them."""

import itertools
import json
import random
from collections import Counter

import pytest
from pydantic import ValidationError

from modulate.errors import DataError, MissingFileError
from modulate_streamgaze.dataset import StreamGazeParams
from modulate_streamgaze.groups import read_table
from modulate_streamgaze.splits import participant_split, source_split
from tests.plugins.streamgaze.streamgaze_tree import EGOEXO, EGTEA, HOLO, VIDEOS

TABLE = "video,participant,source\n" + "".join(
    f"{stem}.mp4,person_{index},\n" for index, stem in enumerate((*EGOEXO, *HOLO))
)


def counts(split):
    found = Counter(split.values())
    return tuple(found[name] for name in ("train", "val", "test"))


def disjoint(split, groups):
    return all(
        len({split[stem] for stem in split if groups[stem] == group}) == 1
        for group in set(groups.values())
    )


def people(sizes):
    return {
        f"v{index:03}_{i}": f"p{index}" for index, size in enumerate(sizes) for i in range(size)
    }


# --- dealing groups


@pytest.mark.parametrize(
    "sizes", [(1, 1, 1), (5, 3, 2, 2, 1), (9, 4, 4, 2, 1, 1), (20, 1, 1), (7, 7, 7, 7)]
)
def test_participants_are_dealt_as_near_to_70_15_15_as_whole_ones_allow(sizes):
    groups = people(sizes)
    n = sum(sizes)
    ways = (
        tuple(sum(size for size, d in zip(sizes, deal) if d == index) for index in range(3))
        for deal in itertools.product(range(3), repeat=len(sizes))
    )
    best = min(
        abs(a - 0.7 * n) + abs(b - 0.15 * n) + abs(c - 0.15 * n)
        for a, b, c in ways
        if a and b and c
    )
    for seed in range(4):
        split = participant_split(groups, seed)
        assert split.keys() == groups.keys() and disjoint(split, groups) and min(counts(split)) > 0
        assert sum(
            abs(count - share * n) for count, share in zip(counts(split), (0.7, 0.15, 0.15))
        ) == pytest.approx(best)


def test_the_split_of_as_many_videos_as_streamgaze_has_is_exact_and_depends_on_the_seed_alone():
    rng = random.Random(3)
    groups = people([rng.randint(1, 9) for _ in range(60)])
    n = len(groups)
    first = participant_split(groups, 42)
    assert all(
        abs(count - share * n) <= 1 for count, share in zip(counts(first), (0.7, 0.15, 0.15))
    )
    shuffled = list(groups.items())
    rng.shuffle(shuffled)
    assert participant_split(dict(shuffled), 42) == first
    others = [participant_split(groups, seed) for seed in range(3)]
    assert len({tuple(sorted(split.items())) for split in others}) == 3


def test_too_few_participants_are_refused():
    with pytest.raises(DataError, match="needs at least 3 participants; the 5 videos have 2"):
        participant_split(people((3, 2)), 0)


def test_a_source_is_held_out_whole_and_the_others_keep_their_participants_together():
    groups = people((4, 4, 3, 3, 3, 2, 1))
    sources = {stem: "egtea" if stem < "v002" else "egoexolearn" for stem in groups}
    split = source_split(sources, groups, "egtea", 1)
    assert {stem for stem in split if split[stem] == "test"} == {
        stem for stem in sources if sources[stem] == "egtea"
    }
    assert disjoint(split, groups) and counts(split) == (10, 2, 8)
    assert source_split(sources, groups, "egtea", 1) == split


def test_of_unknown_participants_every_video_counts_for_itself():
    sources = {f"a{index}": "one" for index in range(20)} | {"b": "two"}
    assert counts(source_split(sources, {}, "two", 0)) == (17, 3, 1)


@pytest.mark.parametrize("name", [None, "ego4d"])
def test_the_source_that_tests_must_be_there(name):
    with pytest.raises(
        DataError, match=r"got .*These videos are of one \(2 videos\), two \(1 videos\)"
    ):
        source_split({"a": "one", "b": "one", "c": "two"}, {}, name, 0)
    with pytest.raises(
        DataError, match="With 'one' held out there are 1 videos of 1 participants left"
    ):
        source_split({"a": "one", "b": "one", "c": "two"}, {}, "one", 0)


# --- who looked


def test_names_tell_sources_and_egteas_participants(reader):
    known = reader().people.known
    assert known["OP01-R02-Pizza"] == {"participant": "OP01", "source": "egtea"}
    assert known[EGOEXO[0]] == {"source": "egoexolearn"}
    assert [known[stem]["source"] for stem in HOLO] == ["holoassist"] * 2


def test_samples_carry_what_is_known(reader):
    groups = {sample.groups["video"]: sample.groups for sample in reader().samples("all")}
    assert groups["P02-R01-Pizza"] == {
        "video": "P02-R01-Pizza",
        "participant": "P02",
        "source": "egtea",
    }
    assert groups[EGOEXO[1]] == {"video": EGOEXO[1], "source": "egoexolearn"}


def test_metadata_tables_tell_participants_by_any_of_their_names(reader, tree):
    (tree / "metadata").mkdir()
    (tree / "metadata/egoexolearn.csv").write_text(
        f"Video_Path,caption,Subject_ID\nx/{EGOEXO[0]}.mp4,a,s1\nx/{EGOEXO[0]}.mp4,b,s1\n{EGOEXO[1]},c,\n"
    )
    known = reader().people.known
    assert known[EGOEXO[0]] == {"participant": "s1", "source": "egoexolearn"} and known[
        EGOEXO[1]
    ] == {"source": "egoexolearn"}


# columns as StreamGaze's own tables have them: many rows for a video, whose name is under
# video_source
EPISODES = "Episode_ID,Video_Source,Object_Type,Object_Identity,Episode_Start_Time\n"
MERGED = (
    "video_source,episode_start_time,episode_end_time,duration,fixation_ids,"
    "representative_object,video_categories,source_file\n"
)


def episodes(*stems):
    return EPISODES + "".join(
        f'{number},{stem},representative,"cup, or\nmug",{number}.5\n'
        for number, stem in enumerate(stems * 2)
    )


def merged(*stems):
    return MERGED + "".join(
        f"""{stem},{number},{number + 3},3,"[1, 2]","{{'object_identity': 'cup'}}",EGTEA,"""
        f"/x/{stem}/{stem}_fixation_merged_filtered_v2.csv\n"
        for number, stem in enumerate(stems)
    )


@pytest.mark.parametrize("table", [episodes, merged])
@pytest.mark.parametrize("name", ["egtea", "total_metadata"])
def test_video_source_names_the_video_and_never_the_data_set(reader, tree, table, name):
    plain = reader()
    (tree / "metadata").mkdir()
    (tree / f"metadata/{name}.csv").write_text(table(*EGTEA))
    found = read_table(tree / f"metadata/{name}.csv", strict=True)
    assert found.rows.keys() == set(EGTEA) and all(
        row == ({"source": "egtea"} if name == "egtea" else {}) for row in found.rows.values()
    )
    with_tables = reader()
    assert with_tables.people.known == plain.people.known and {
        video["source"] for video in with_tables.people.known.values()
    } == {"egtea", "egoexolearn", "holoassist"}
    assert [sample.groups for sample in with_tables.samples("all")] == [
        sample.groups for sample in plain.samples("all")
    ]


def test_splits_do_not_go_by_the_name_of_the_video(reader, tree):
    (tree / "who.csv").write_text(TABLE)
    before = [
        reader(split="participant", groups="who.csv").splits,
        reader(split="source", test_source="egtea").splits,
    ]
    (tree / "metadata").mkdir()
    for name, stems in (("egtea", EGTEA), ("egoexolearn", EGOEXO), ("holoassist", HOLO)):
        (tree / f"metadata/{name}.csv").write_text(episodes(*stems))
    (tree / "metadata/total_metadata.csv").write_text(
        "video_name,source,video_source\n" + "".join(f"{stem},{stem},{stem}\n" for stem in VIDEOS)
    )
    by_participant = reader(split="participant", groups="who.csv")
    assert [by_participant.splits, reader(split="source", test_source="egtea").splits] == before
    assert (
        by_participant.splits[EGTEA[0]] == by_participant.splits[EGTEA[1]]
    )  # both of OP01, whatever the tables call their source
    assert {video["source"] for video in by_participant.people.known.values()} == {
        "egtea",
        "egoexolearn",
        "holoassist",
    }


def test_a_table_of_videos_that_nothing_else_tells_of_gives_them_its_data_set(tmp_path):
    (tmp_path / "egoexo.csv").write_text(
        "video_source,dataset\nkitchen_7_fixation_merged_filtered_v2.csv,EgoExo\nlab\\kitchen_8.csv,\n"
    )
    assert read_table(tmp_path / "egoexo.csv", strict=True).rows == {
        "kitchen_7": {"source": "egoexolearn"},
        "kitchen_8": {"source": "egoexolearn"},
    }
    (tmp_path / "own.csv").write_text("video,participant,source\nP01.R02.mp4,ann,Kitchen\n")
    assert read_table(tmp_path / "own.csv", strict=True).rows == {
        "P01.R02": {"participant": "ann", "source": "kitchen"}
    }


def test_the_users_table_wins_and_folders_come_last(reader, tree):
    (tree / "who.csv").write_text("video,participant,source\nOP01-R02-Pizza,somebody,Kitchen\n")
    known = reader(groups="who.csv").people.known
    assert (
        known["OP01-R02-Pizza"] == {"participant": "somebody", "source": "kitchen"}
        and known["OP01-R01-PastaSalad"]["participant"] == "OP01"
    )
    videos = tree / "videos/original_video"
    (videos / "videos_holoassist_original").mkdir()
    (videos / f"{EGOEXO[0]}.mp4").rename(videos / f"videos_holoassist_original/{EGOEXO[0]}.mp4")
    assert reader().people.known[EGOEXO[0]]["source"] == "egoexolearn"


def test_an_unknown_participant_is_an_error_that_says_what_was_looked_for(reader, tree):
    (tree / "metadata").mkdir()
    (tree / "metadata/holoassist.csv").write_text("name,gaze\na,b\n")
    text = (
        r"A split by participant needs the participant of every video; it is unknown for 4 of 8:"
        r" 0049ed5a.*Looked for: no table, `groups` is not set; "
        r"the keys participant, viewer.* entries; 1 tables in .*metadata \(.*holoassist\.csv, line"
        r" 1: no column names the video .*got 'name,gaze'\.\); "
        r"EGTEA's names .* `groups`"
    )
    with pytest.raises(DataError, match=text):
        reader(split="participant").samples("train")
    assert reader().samples("train")


def test_the_splits_of_a_tree_keep_participants_and_sources_apart(reader, tree):
    (tree / "who.csv").write_text(TABLE)
    data = reader(split="participant", groups="who.csv")
    assert disjoint(
        data.splits, {stem: video["participant"] for stem, video in data.people.known.items()}
    ) and counts(data.splits) == (6, 1, 1)
    held = reader(split="source", test_source="holoassist")
    assert {stem for stem, name in held.splits.items() if name == "test"} == set(HOLO)
    assert {sample.groups["source"] for sample in held.samples("test")} == {"holoassist"}
    assert reader(split="source", test_source="holoassist", split_seed=1).splits != held.splits


def test_all_is_every_split_together(reader):
    data = reader()
    ids = [sample.id for sample in data.samples("all")]
    assert sorted(ids) == sorted(
        sample.id for split in ("train", "val", "test") for sample in data.samples(split)
    ) and len(ids) == 8 * (8 * 2 + 2 * 2)
    assert len(reader(limits={"all": 30}).samples("all")) == 30


def test_videos_left_out_on_purpose_are_not_in_all(reader, tree):
    (tree / "split.json").write_text(json.dumps({"train": VIDEOS[:1], "unused": VIDEOS[1:]}))
    assert {sample.groups["video"] for sample in reader(split="split.json").samples("all")} == {
        VIDEOS[0]
    }


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"test_source": "egtea"}, "no effect on split: gazeqwen"),
        ({"split": "source"}, "split: source needs `test_source`"),
    ],
)
def test_settings_that_do_not_belong_together_are_refused(changes, text):
    with pytest.raises(ValidationError, match=text):
        StreamGazeParams(root="x", **changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"who,what\n", r"line 1: no column names the video \(video or .*got 'who,what'"),
        (b"", "no column names the video"),
        (
            b"video,participant\na,p1\na.mp4,p2\n",
            r"line 3: video 'a' has two values of participant, 'p1' and 'p2'",
        ),
        (b"video\n\xff\xfe\n", "not readable as a UTF-8 CSV"),
        (
            b"video,participant\n" + b'"' + b"x" * 200_000,
            "not readable as a UTF-8 CSV: field larger than",
        ),
    ],
)
def test_tables_are_errors_where_the_user_named_them_and_notes_elsewhere(tmp_path, text, message):
    path = tmp_path / "t.csv"
    path.write_bytes(text)
    with pytest.raises(DataError, match=message):
        read_table(path, strict=True)
    table = read_table(path, strict=False)
    assert table.rows == {} and len(table.notes) == 1


def test_a_table_that_is_named_must_exist(reader):
    with pytest.raises(
        MissingFileError,
        match=(
            r"nobody\.csv does not exist; it must be a CSV with the columns video, participant,"
            r" source"
        ),
    ):
        reader(split="participant", groups="nobody.csv").samples("train")


def test_entries_that_contradict_each_other_are_named(reader, tree):
    path = tree / "qa/past_scene_recall.json"
    entries = json.loads(path.read_text())
    entries[0]["viewer"] = "a"
    entries[1] |= {"viewer": "b", "video_path": f"{VIDEOS[0]}.mp4"}
    path.write_text(json.dumps(entries))
    with pytest.raises(
        DataError,
        match=(
            rf"Question past_scene_recall/{VIDEOS[0]}/1/0: video .* has two values of participant,"
            r" 'a' and 'b'"
        ),
    ):
        reader().samples("all")


def best_deal(sizes, shares):
    """Return the least sum of absolute differences over all assignments without empty splits."""
    n = sum(sizes)
    kinds = [index for index, share in enumerate(shares) if share]
    ways = (
        [sum(size for size, d in zip(sizes, deal) if d == index) for index in range(3)]
        for deal in itertools.product(kinds, repeat=len(sizes))
    )
    return min(
        sum(abs(c - share * n) for c, share in zip(way, shares))
        for way in ways
        if all(way[kind] for kind in kinds)
    )


@pytest.mark.parametrize("seed", range(12))
def test_any_groups_are_dealt_as_near_to_the_shares_as_whole_ones_allow(seed):
    rng = random.Random(seed)
    sizes = [rng.randint(1, 12) for _ in range(rng.randint(3, 7))]
    groups = people(sizes)
    n = sum(sizes)
    dealt = counts(participant_split(groups, seed))
    assert min(dealt) > 0
    assert sum(abs(c - share * n) for c, share in zip(dealt, (0.7, 0.15, 0.15))) == pytest.approx(
        best_deal(sizes, (0.7, 0.15, 0.15))
    )
    sources = dict.fromkeys(groups, "rest") | {"held_out": "other"}
    train, val, test = counts(source_split(sources, groups, "other", seed))
    assert test == 1 and min(train, val) > 0
    assert abs(train - 0.85 * n) + abs(val - 0.15 * n) == pytest.approx(
        best_deal(sizes, (0.85, 0.15, 0.0))
    )
