"""One self-contained page on finished runs: tables, tests, figures, samples."""
