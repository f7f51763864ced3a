"""Keep control characters in names, prompts and records from steering a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Span, Text

from engine.errors import visible


class VisibleConsole(Console):
    """A console that prints control characters in data as escapes; line breaks and tabs stay.

    Strings are escaped before they are measured, so that tables stay aligned. Segments that rich itself makes to steer
    the terminal pass unchanged.
    """

    def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401 - the options of `Console.render_str`
        """Make a text of a string."""
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render anything to segments; all that is printed passes here."""
        drawn = visible_text(renderable) if isinstance(renderable, Text) else renderable
        for segment in super().render(drawn, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


def visible_text(text: Text) -> Text:
    r"""Show control characters of a styled text as escapes; the styles stay where they were.

    Args:
        text: The text; it is not changed.

    Example:
        >>> visible_text(Text("a\x1b[31mb")).plain
        'a\\x1b[31mb'
    """
    if visible(text.plain) == text.plain:
        return text
    shown = [visible(character) for character in text.plain]
    starts = [0, *accumulate(map(len, shown))]
    copy = text.blank_copy("".join(shown))
    copy.spans = [
        Span(starts[span.start], starts[min(span.end, len(shown))], span.style)
        for span in text.spans
        if span.start < len(shown)
    ]
    return copy
