"""Markup by construction."""

from modulate.report.html import breakable, tag


def test_text_is_escaped_and_tags_are_not():
    element = tag("p", "<b>", tag("i", "&"), None, title='"<')
    assert element == '<p title="&quot;&lt;">&lt;b&gt;<i>&amp;</i></p>'


def test_attributes_may_be_absent_or_without_a_value():
    assert tag("meta", a=None, b=True, class_="x", aria_label="y") == (
        '<meta b class="x" aria-label="y">'
    )


def test_long_names_may_break_after_separators():
    assert breakable("present_object<b>") == "present_<wbr>object&lt;b&gt;"
