"""Checks of tables on six small clips."""

from modulate.checks.data_check import check_data
from modulate.config.sections import Sampling
from modulate.data.sampled_steps import SampledSteps
from modulate_table.dataset import Table
from modulate_table.params import TableParams

GAZE = "start_time,end_time,center_x,center_y\n0.2,0.9,0.4,0.5\n"
STEPS = SampledSteps(Sampling())
HEAD = "video,question,answer,gaze,end\n"
ROWS = "".join(f"{name}.mp4,What?,{name},{name}.csv,1.5\n" for name in "abcdef")


SHARES = {"shares": {"train": 0.5, "val": 0.17, "test": 0.33}}


def check_table(folder, text, kinds=("gaze",), decode=False, **params):
    """Write a table, given with commas, and check it."""
    (folder / "q.tsv").write_text(text.replace(",", "\t"))
    return check_data(table_in(folder, **params), STEPS, kinds, decode)


def table_in(folder, **params):
    return Table(TableParams(root=folder, files="q.tsv", **{"split": SHARES, **params}))


def found(inspection, level):
    """The findings of a level: text → rows."""
    return {finding.text: finding.rows for finding in inspection.findings if finding.level == level}
