"""Keep control characters out of what the app draws."""

from __future__ import annotations

from functools import lru_cache

from rich.cells import cell_len
from rich.segment import Segment
from rich.text import Text
from textual.color import Color
from textual.filter import LineFilter
from textual.visual import VisualType
from textual.widgets import Static

from engine.errors import visible
from engine.plots.visible_text import visible_text


class Words(Static):
    """A text without markup that shows control characters as escapes.

    Args:
        content: The text.
        id: Identifier in the screen.
        classes: Names of styles.
    """

    def __init__(self, content: str | Text = "", *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(_escaped(content), id=id, classes=classes, markup=False)

    def update(self, content: VisualType = "", *, layout: bool = True) -> None:
        """Replace the text."""
        super().update(_escaped(content), layout=layout)


def _escaped(content: VisualType) -> VisualType:
    if isinstance(content, Text):
        return visible_text(content)
    return visible(content) if isinstance(content, str) else content


class NoControls(LineFilter):
    """Removes control characters from every line that is drawn, whichever widget drew it.

    They take no room on the screen, so what is next to them stays in its place. Widgets that draw data show them as
    escapes before the line is measured.
    """

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:  # noqa: ARG002 - a filter's arguments
        """Return the segments without control characters."""
        return [segment if segment.text.isprintable() else _printable(segment) for segment in segments]


@lru_cache(1024)
def _printable(segment: Segment) -> Segment:
    kept = (
        sign if sign not in "\n\t" and visible(sign) == sign else "\N{REPLACEMENT CHARACTER}" * cell_len(sign)
        for sign in segment.text
    )
    return segment._replace(text="".join(kept))
