"""A check of data, on tables of real clips: what is found, and where."""

from modulate.checks.data_check import check_data
from modulate.interfaces.components import Dataset
from modulate_table.dataset import Table
from modulate_table.params import TableParams
from tests.checks.tables import HEAD, ROWS, STEPS, check_table, found, table_in


def test_good_data_have_no_errors_and_no_warnings(clips):
    files = []
    inspection = check_table(clips, HEAD + ROWS)
    assert inspection.ok and found(inspection, "warning") == {}
    assert inspection.figures["samples"] == {"train": 3, "val": 1, "test": 2}
    assert inspection.figures["rows"] == {"read": 6, "bad": 0}
    data = table_in(clips)
    check_data(data, STEPS, advance=lambda: files.append(1))
    assert len(files) == 12, "six videos and six signals"


def test_bad_rows_are_named_and_the_others_are_still_check_table(clips):
    (clips / "f.csv").write_text("center_x\n")
    inspection = check_table(clips, f"{HEAD}{ROWS}none.mp4,What?,x,a.csv,1.5\n")
    errors = found(inspection, "error")
    (rows,) = [rows for text, rows in errors.items() if "1 of 7 rows of q.tsv cannot" in text]
    assert rows[0].startswith("q.tsv, line 8: video: there is no file at")
    (rows,) = [rows for text, rows in errors.items() if "'gaze' files cannot be read" in text]
    assert rows[0].startswith("q.tsv, line 7: ")
    assert not inspection.ok


def test_left_out_rows_are_counted(clips):
    inspection = check_table(clips, f"{HEAD}{ROWS}none.mp4,?,x,a.csv,1\n", skip_bad_rows=True)
    (text,) = found(inspection, "warning")
    assert text == "1 of 7 rows of q.tsv cannot be used and are left out (skip_bad_rows)."
    assert inspection.ok


def test_what_cannot_be_read_at_all_is_one_error(clips):
    inspection = check_table(clips, "video,question\na.mp4,?\n")
    (text,) = found(inspection, "error")
    assert "The table has no column answer or answers" in text
    leaking = check_table(clips, "video,question,answer,split\na.mp4,?,x,train\na.mp4,!,x,test\n")
    (text,) = found(leaking, "error")
    assert "in more than one split" in text


def test_ids_of_two_samples(clips):
    class Twice(Dataset):
        def samples(self, split):
            return table.samples("all") + table.samples("all")[:1] if split == "train" else []

        def fingerprint(self):
            return "twice"

    check_table(clips, HEAD + ROWS)
    table = table_in(clips, split={"shares": {"train": 1.0}})
    inspection = check_data(Twice(), STEPS)
    assert found(inspection, "error") == {
        "1 ids belong to more than one sample.": (
            "q.tsv, line 2: q.tsv:2 is that of q.tsv, line 2",
        )
    }


def test_a_data_set_that_fails_is_a_finding():
    missing = Table(TableParams(files="none.csv"))
    (text,) = found(check_data(missing, STEPS), "error")
    assert text.startswith("There is no table at")
