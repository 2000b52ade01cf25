"""Own questions from a table: CSV, TSV, JSON lines, Parquet, or a Hugging Face data set.

Importing this package imports no torch.
"""

from modulate.hookspecs import Register, hookimpl


@hookimpl
def register_datasets(register: Register) -> None:
    """Register the reader of tables."""
    register("table", "modulate_table.dataset:Table")
