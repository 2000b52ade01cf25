"""What splits share, and questions that are asked twice."""

from tests.checks.tables import check_table, found

HEAD = "video,question,answer,split,who\n"


def test_videos_in_two_splits_are_named_also_under_another_name(clips):
    (clips / "copy.mp4").write_bytes((clips / "a.mp4").read_bytes())
    rows = (
        "a.mp4,?,x,train,P1\nb.mp4,?,x,train,P1\nb.mp4,!,x,test,P1\nd.mp4,!,x,test,P3\n"
        "copy.mp4,?,x,val,P2\nc.mp4,?,x,train,P2\n"
    )
    inspection = check_table(clips, HEAD + rows, (), groups=["who"], allow_shared_videos=True)
    ((text, rows),) = found(inspection, "warning").items()
    assert text.startswith("2 videos or pictures are in more than one split")
    assert set(rows) == {
        "train: a.mp4 q.tsv, line 2; val: copy.mp4 q.tsv, line 6",
        "train: b.mp4 q.tsv, line 3; test: b.mp4 q.tsv, line 4",
    }
    infos = found(inspection, "info")
    assert "Splits may share videos (allow_shared_videos)." in infos
    assert infos["2 of 3 values of 'who' are in several splits."] == (
        "P1: train: q.tsv, line 2; test: q.tsv, line 4",
        "P2: train: q.tsv, line 7; val: q.tsv, line 6",
    )


def test_questions_that_are_asked_twice(clips):
    rows = "a.mp4,?,x,train,P\na.mp4,?,x,train,P\na.mp4,?,y,train,P\na.mp4,!,y,train,P\n"
    inspection = check_table(clips, HEAD + rows, ())
    assert found(inspection, "info")["1 questions repeat an earlier one."] == (
        "q.tsv, line 3: as q.tsv, line 2",
    )
    contradiction = "1 questions repeat an earlier one, but with another answer."
    assert found(inspection, "warning")[contradiction] == ("q.tsv, line 4: as q.tsv, line 2",)


def test_a_split_of_one_video_is_a_warning(clips):
    rows = "a.mp4,?,x,train,P\nb.mp4,?,x,test,P\nb.mp4,!,y,test,P\n"
    (text,) = found(check_table(clips, HEAD + rows, ()), "warning")
    assert text.startswith("The test split shows one video only")
    rows += "c.mp4,!,x,test,P\n"
    assert found(check_table(clips, HEAD + rows, ()), "warning") == {}
