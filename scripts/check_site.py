"""Check the links of a built site: pages, pictures and anchors must exist.

Usage: python scripts/check_site.py build/site

The site generator checks links between Markdown pages; this also checks pictures and links in docstrings.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The anchors and links of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        """Called with every opening tag."""
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif name in {"href", "src"} and value:
                self.links.append(value)


def main(folder: Path) -> int:
    """Print each broken link; return 1 if there are any."""
    pages = {path.resolve(): Page(path) for path in sorted(folder.rglob("*.html"))}
    links = 0
    broken = 0
    for path, page in pages.items():
        if path.name == "404.html":  # served from any folder, so its links begin at the root of the host
            continue
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            links += 1
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            if not target.exists() or (target in pages and not _has(pages[target], parts.fragment)):
                broken += 1
                print(f"{path.relative_to(folder.resolve())}: {link}: broken link")
    print(f"{len(pages)} pages, {links} links within the site, {broken} broken")
    return int(broken > 0 or not pages)


def _has(page: Page, fragment: str) -> bool:
    return not fragment or unquote(fragment) in page.anchors


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
