"""Deprecations of libraries are shown once as plain lines; the user's settings stay."""

import logging
import sys
import warnings

import pytest

from modulate.utils import library_warnings as notices
from modulate.utils.library_warnings import show_library_warnings

LIBRARY = "transformers"


@pytest.fixture
def stock():
    """Python's default warning filters, with nobody recording warnings."""
    with warnings.catch_warnings():
        warnings.resetwarnings()
        for entry in (
            ("ignore", DeprecationWarning),
            ("ignore", PendingDeprecationWarning),
            ("ignore", ImportWarning),
            ("ignore", ResourceWarning),
        ):
            warnings.simplefilter(*entry, append=True)
        warnings.filterwarnings("default", category=DeprecationWarning, module="__main__")
        notices._shown.clear()
        yield


def printed(category, text, module=LIBRARY):
    """Warn from a library, and return what Python prints."""
    found = []
    with warnings.catch_warnings(record=True) as recorded:
        warnings.warn_explicit(text, category, f"{module}.py", 1, module=module, registry={})
    found += [
        warnings.formatwarning(one.message, one.category, one.filename, one.lineno)
        for one in recorded
    ]
    return found


@pytest.mark.parametrize("category", notices.DEPRECATIONS)
def test_a_deprecation_of_a_library_is_shown_once_as_a_plain_line(stock, category):
    with show_library_warnings():
        assert printed(category, "old") == ["warning: old\n"]
        assert printed(category, "old") == [""]
        assert printed(category, "older") == ["warning: older\n"]
    with show_library_warnings():
        assert printed(category, "old") == [""]
    with show_library_warnings(every=True):
        assert printed(category, "old") == ["warning: old\n"]


def test_other_warnings_are_printed_as_by_python_but_as_plain_lines_in_a_command(stock):
    with show_library_warnings():
        (line,) = printed(UserWarning, "look")
        assert line.startswith(f"{LIBRARY}.py:1: UserWarning: look")
        assert printed(UserWarning, "look") == [line]
    with show_library_warnings(every=True):
        assert printed(UserWarning, "look") == ["warning: look\n"] == printed(UserWarning, "look")


def test_filters_and_format_are_restored_when_the_outermost_block_ends(stock):
    before = warnings.formatwarning
    filters = list(warnings.filters)
    with show_library_warnings():
        inside = warnings.formatwarning
        assert inside is not before and len(warnings.filters) == len(filters) + 2
        with pytest.raises(KeyError), show_library_warnings():
            assert warnings.formatwarning is inside
            raise KeyError
        assert warnings.formatwarning is inside
    assert warnings.formatwarning is before and warnings.filters == filters
    with show_library_warnings():
        assert warnings.formatwarning is not before
    assert warnings.formatwarning is before and warnings.filters == filters


def test_deprecations_of_unknown_libraries_and_ignored_ones_are_not_shown(stock):
    with show_library_warnings():
        assert printed(DeprecationWarning, "old", "somebody") == []
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=LIBRARY)
    with show_library_warnings():
        assert printed(DeprecationWarning, "old") == []
    warnings.simplefilter("ignore", DeprecationWarning)
    with show_library_warnings():
        assert printed(DeprecationWarning, "other") == []


def test_logs_of_a_library_go_to_the_current_stderr(stock, capsys):
    logger = logging.getLogger(LIBRARY)
    own = logging.StreamHandler(sys.__stderr__)
    before = list(logger.handlers)
    spreads = logger.propagate
    logger.handlers = [own]
    logger.propagate = False
    try:
        with show_library_warnings():
            for _ in range(2):
                logger.warning("careful")
                logger.error("wrong")
            assert own not in logger.handlers
            assert capsys.readouterr().err.splitlines() == [
                "warning: careful",
                "error: wrong",
                "error: wrong",
            ]
        assert logger.handlers == [own]
        kept = logging.NullHandler()
        logger.handlers = [kept]
        with show_library_warnings():
            assert logger.handlers == [kept]  # somebody handles them already
    finally:
        logger.handlers = before
        logger.propagate = spreads
