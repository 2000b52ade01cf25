"""Every parser of foreign files, with valid inputs and a check of its results.

A parser may answer with a :class:`modulate.errors.ModulateError` or with a result that passes its
check; anything else is a finding. The checks follow the formats, not the parsers' code.

To add a parser, add a :class:`Parser` to the list that its module's ``parsers`` returns.
"""

from tests.durability.parsers import (
    modulations,
    recipes,
    records,
    released_checkpoint,
    side_signals,
    streamgaze,
    tables,
    videos,
)
from tests.durability.parsers.parser import Parser, through_file
from tests.durability.parsers.streamgaze import MCQ, NAMES

__all__ = ["MCQ", "NAMES", "Parser", "parsers", "through_file"]


def parsers() -> dict[str, Parser]:
    """Return every parser by name.

    Imports the parsers' modules only when called, so that the fuzzer can instrument them first.
    """
    every = [
        *side_signals.parsers(),
        *streamgaze.parsers(),
        *tables.parsers(),
        *recipes.parsers(),
        *modulations.parsers(),
        *released_checkpoint.parsers(),
        *records.parsers(),
        *videos.parsers(),
        *side_signals.raw_gaze_parsers(),
    ]
    return {parser.name: parser for parser in every}
