"""The site of the documentation shows every page, and its links lead to what the site has."""

import importlib.util
import re
from xml.etree import ElementTree

import pytest
import yaml

from modulate.evaluation.predictions import Prediction
from modulate.interfaces.signal import Mark
from modulate.report.gallery import GalleryClip, GallerySample, StepPicture
from tests.paths import ROOT
from tests.samples import one_clip_sample


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


site_hooks = load(ROOT / "docs" / "site_hooks.py")


def navigated():
    tabs = site_hooks.navigation((ROOT / "docs" / "index.md").read_text())
    for tab in tabs:
        for pages in tab.values():
            yield from [pages] if isinstance(pages, str) else pages


def test_the_navigation_has_every_page_once():
    pages = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")}
    listed = list(navigated())
    assert sorted(listed) == sorted(set(listed))
    assert set(listed) == pages | set(site_hooks.ROOT_PAGES.values())


@pytest.mark.parametrize(
    "page, link, shown",
    [
        ("how-to/a.md", "[x](../reference/hosts.md#top)", "[x](../reference/hosts.md#top)"),
        (
            "how-to/a.md",
            "[the lock](../../requirements/lock.txt)",
            "the lock (`requirements/lock.txt`)",
        ),
        ("how-to/a.md", "[`lock.txt`](../../requirements/lock.txt)", "`requirements/lock.txt`"),
        ("index.md", "[README](../README.md)", "[README](readme.md)"),
        ("explanation/statistics.md", "[x](../../SECURITY.md)", "[x](../security.md)"),
        ("readme.md", "[x](docs/errors.md)", "[x](errors.md)"),
        ("readme.md", "[License](LICENSE)", "License (`LICENSE`)"),
        ("readme.md", "![x](docs/assets/demo.svg)", "![x](assets/demo.svg)"),
        ("index.md", "[x](https://example.org/a)", "[x](https://example.org/a)"),
        ("index.md", "```sh\n[x](../README.md)\n```", "```sh\n[x](../README.md)\n```"),
    ],
)
def test_links_lead_to_what_the_site_has(page, link, shown):
    assert site_hooks.rewrite_links(link, page) == shown


def test_the_site_loads_no_fonts_and_names_no_other_server():
    text = (ROOT / "mkdocs.yml").read_text()
    assert yaml.safe_load(text)["theme"]["font"] is False
    assert re.findall(r"https?://", text) == []


def test_the_figure_embeds_its_pictures_and_names_no_other_file():
    figure = ElementTree.parse(ROOT / "docs" / "assets" / "demo.svg")
    links = [
        value
        for element in figure.iter()
        for name, value in element.attrib.items()
        if name.rpartition("}")[2] == "href"
    ]
    assert len(links) == 4
    assert all(link.startswith("data:image/jpeg;base64,") for link in links)


def test_the_figure_s_script_draws_a_sample_of_a_gallery():
    script = load(ROOT / "docs" / "assets" / "make_demo_figure.py")
    step = StepPicture(0, (0.0, 1.0), b"jpeg", (64, 64), (Mark(0.5, 0.25, "fixation"),))
    answers = {
        name: Prediction("q", "task", "video", name, 1, choice, choice == 1, logits, 1)
        for name, choice, logits in (("signal", 1, (0.0, 3.0)), ("none", 0, (1.0, 0.0)))
    }
    sample = one_clip_sample("q", question="Which & why?", options=("<a>", "b"), answer=1)
    shown = GallerySample(sample, "kind", answers, (GalleryClip((step,), 1, {}, {}),), {}, True)
    texts = [
        element.text
        for element in ElementTree.fromstring(script.figure(shown)).iter()
        if element.text and element.text.strip()
    ]
    assert texts[0] == "Which & why?"
    assert {"<a>", "b ✓", "95.3 %", "73.1 %", "0.0–1.0 s"} <= set(texts)
