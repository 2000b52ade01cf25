"""Hooks of MkDocs: navigation from docs/index.md, and links that leave docs/.

The Markdown is written for readers of the repository. On the site, three files of the repository's
root become pages, and links to any other file outside docs/ become plain text with its path.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

ROOT_PAGES = {
    "README.md": "readme.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
"""Files of the repository's root that the site shows, with the page of each."""

TABLES = ("results/", "reference/hosts.md", "benchmarks.md", "explanation/durability.md")
"""Pages that consist mostly of measured figures."""

LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])+)\]\(([^)\s]+)\)")
LEADING_COMMENT = re.compile(r"\A<!--.*?-->\s*", re.S)
FENCE = re.compile(r"^(```.*?^```$)", re.M | re.S)


def on_config(config: Any) -> Any:
    """Take the navigation from the index: one tab for each of its headings."""
    config.nav = navigation((ROOT / "docs" / "index.md").read_text(encoding="utf-8"))
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages made of files in the repository's root."""
    from mkdocs.structure.files import File

    for source, page in ROOT_PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite the links of a page that lead out of docs/, and rank pages of figures last."""
    if page.file.src_uri.startswith(TABLES):
        # Their long tables match almost every search.
        page.meta.setdefault("search", {"boost": 0.1})
    # MkDocs takes a page's title from its first line, which must not be a comment.
    return rewrite_links(LEADING_COMMENT.sub("", markdown), page.file.src_uri)


def navigation(index: str) -> list[Any]:
    """Return the navigation: the index, then {heading: its Markdown pages in order}."""
    tabs: list[Any] = [{"Home": "index.md"}]
    for section in re.split(r"^## ", index, flags=re.M)[1:]:
        heading = section.partition("\n")[0]
        targets = [page_of("docs", link[2].partition("#")[0]) for link in LINK.finditer(section)]
        pages = [page for page in dict.fromkeys(targets) if page and page.endswith(".md")]
        tabs.append({heading: pages})
    # The README is linked above the first heading.
    tabs[1:1] = [{"Overview": ["readme.md"]}]
    return tabs


def page_of(folder: str, link: str) -> str | None:
    """Return the site's path of what ``link`` in ``folder`` names; None if the site lacks it."""
    path = posixpath.normpath(posixpath.join(folder, link))
    if path in ROOT_PAGES:
        return ROOT_PAGES[path]
    inside = path.startswith("docs/") and (ROOT / path).is_file()
    return path.removeprefix("docs/") if inside else None


def rewrite_links(markdown: str, page: str) -> str:
    """Return the text of ``page`` with every relative link made right for the site."""
    sources = {target: source for source, target in ROOT_PAGES.items()}
    folder = "" if page in sources else posixpath.join("docs", posixpath.dirname(page))

    def rewrite(match: re.Match[str]) -> str:
        text, link = match[1], match[2]
        if "://" in link or link.startswith("#"):
            return match[0]
        path, hash_sign, anchor = link.partition("#")
        target = page_of(folder, path)
        if target is None:
            return _without_link(text, posixpath.normpath(posixpath.join(folder, path)))
        relative = posixpath.relpath(target, posixpath.dirname(page) or ".")
        return f"[{text}]({relative}{hash_sign}{anchor})"

    # Odd parts are fenced code, which holds no links.
    parts = FENCE.split(markdown)
    parts[::2] = [LINK.sub(rewrite, part) for part in parts[::2]]
    return "".join(_figures(part, folder) for part in parts)


def _without_link(text: str, path: str) -> str:
    """Return the text of a link whose target is not on the site, with the target's path."""
    shown = text.strip("`")
    return f"`{path}`" if shown.rstrip("/") in path else f"{text} (`{path}`)"


def _figures(text: str, folder: str) -> str:
    """Make the README's paths of pictures, which begin with docs/, relative to docs/."""
    return text if folder else re.sub(r'(src="|srcset="|\]\()docs/', r"\1", text)
