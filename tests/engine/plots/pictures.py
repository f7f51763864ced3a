"""Helpers that read figures."""

from pathlib import Path
from xml.etree import ElementTree


def svg_words(path: Path) -> list[str]:
    """Texts of an SVG figure, in drawing order."""
    elements = ElementTree.parse(path).iter()  # noqa: S314 - the picture was drawn here
    texts = ("".join(element.itertext()) for element in elements if element.tag.endswith("}text"))
    return [line.strip() for text in texts for line in text.strip().splitlines()]
