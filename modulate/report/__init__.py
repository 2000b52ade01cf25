"""One self-contained page on finished runs: tables, tests, plots and a gallery of samples."""
