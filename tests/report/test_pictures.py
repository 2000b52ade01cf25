"""The gallery as HTML."""

from dataclasses import replace

from modulate.report.pictures import gallery_section
from tests.report.helpers import ParsedPage


def test_each_frame_is_embedded_once_and_then_referred_to(built_gallery):
    page = ParsedPage("".join(gallery_section(built_gallery)))
    images = page.all("image")
    assert len(images) == 6
    assert all(image["href"].startswith("data:image/jpeg;base64,") for image in images)
    assert {use["href"] for use in page.all("use")} == {f"#{image['id']}" for image in images}
    assert page.open == [] and "2 of 4 steps are not shown" in page.text
    assert built_gallery.samples[0].sample.question in page.text


def test_answers_that_changed_since_the_evaluation_are_pointed_out(built_gallery):
    note = "This answer differs from predictions.jsonl"
    assert note not in "".join(gallery_section(built_gallery))
    changed = replace(built_gallery.samples[0], reproduced=False)
    assert note in "".join(gallery_section(replace(built_gallery, samples=(changed,))))
