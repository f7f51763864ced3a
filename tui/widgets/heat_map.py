"""A heat map of tokens by layers that draws only its visible cells.

Each row is a token and each column a layer, so that a text of thousands of tokens scrolls like text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from engine.plots.tokens_text import MOST_SPREADS, shown_token, stand_out, tokens_aside
from engine.records.files import TokenReading
from tui.looks import looks_of, shade

_TOKEN = 14  # width of the token column
_WIDEST = 4  # maximum width of a layer
_LEVELS = 4  # shades per class


class HeatMap(ScrollView, can_focus=True, inherit_bindings=False):
    """How far each token stands out within each layer, and towards which class."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j", "move(1, 0)", "Next token", show=False),
        Binding("up,k", "move(-1, 0)", "Previous token", show=False),
        Binding("right,l", "move(0, 1)", "Next layer", show=False),
        Binding("left,h", "move(0, -1)", "Previous layer", show=False),
        Binding("pagedown,ctrl+d", "page(1)", "Page down", show=False),
        Binding("pageup,ctrl+u", "page(-1)", "Page up", show=False),
        Binding("home,g", "move(-1000000000, 0)", "First token", show=False),
        Binding("end,G", "move(1000000000, 0)", "Last token", show=False),
    ]

    reading: reactive[TokenReading | None] = reactive(None)
    token: reactive[int] = reactive(0)
    column: reactive[int] = reactive(0)

    @dataclass
    class Moved(Message):
        """The cursor moved to another cell."""

        token: int
        layer: int

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self._columns: list[list[float]] = []
        self._aside: set[int] = set()

    def watch_reading(self, reading: TokenReading | None) -> None:
        """Compute the cells of a new reading and move the cursor to the leading layer."""
        self._aside = tokens_aside(reading) if reading else set()
        values = [reading["values"][layer] for layer in reading["layers"]] if reading else []
        self._columns = [stand_out(column, self._aside) for column in values]
        if reading:
            self.column = reading["layers"].index(reading["leading"])
            self.token = next(place for place in range(len(reading["tokens"])) if place not in self._aside)
        self._measure()
        self.scroll_to(0, 0, animate=False)
        self._tell()

    def on_resize(self) -> None:
        """Adapt the width of a layer."""
        self._measure()

    def _measure(self) -> None:
        if self.reading:
            width = _TOKEN + self._cell * len(self._columns)
            self.virtual_size = Size(width, len(self.reading["tokens"]) + 1)
            self.refresh()

    @property
    def chosen_layer(self) -> int:
        """The layer under the cursor; 0 without a reading."""
        return self.reading["layers"][self.column] if self.reading else 0

    @property
    def _cell(self) -> int:
        """Width of one layer in characters."""
        return max(min((self.size.width - _TOKEN) // max(len(self._columns), 1), _WIDEST), 1)

    def validate_token(self, token: int) -> int:
        """Clamp the cursor to the existing tokens."""
        return max(min(token, len(self.reading["tokens"]) - 1), 0) if self.reading else 0

    def validate_column(self, column: int) -> int:
        """Clamp the cursor to the existing layers."""
        return max(min(column, len(self._columns) - 1), 0)

    def watch_token(self) -> None:
        """Scroll to the cursor."""
        self._follow()

    def watch_column(self) -> None:
        """Scroll to the cursor."""
        self._follow()

    def _follow(self) -> None:
        left = _TOKEN + self.column * self._cell
        self.scroll_to_region(Region(left, self.token, self._cell, 2), animate=False, force=True)
        self.refresh()
        self._tell()

    def _tell(self) -> None:
        if self.is_mounted and self.reading and self._columns:
            self.post_message(self.Moved(self.token, self.reading["layers"][self.column]))

    def action_move(self, tokens: int, layers: int) -> None:
        """Move the cursor."""
        self.token += tokens
        self.column += layers

    def action_page(self, pages: int) -> None:
        """Move the cursor by a page."""
        self.token += pages * max(self.size.height - 2, 1)

    def on_click(self, event: events.Click) -> None:
        """Move the cursor to the clicked cell."""
        if event.y > 0:
            self.token = event.y - 1 + self.scroll_offset.y
        if event.x >= _TOKEN:
            self.column = (event.x - _TOKEN + self.scroll_offset.x) // self._cell

    def render_line(self, y: int) -> Strip:
        """Draw the line of layer numbers or one token with its cells."""
        width = self.size.width
        place = y - 1 + self.scroll_offset.y
        if self.reading is None or place >= len(self.reading["tokens"]):
            return Strip.blank(width, self.rich_style)
        quiet = looks_of(self.app).quiet
        first = self.scroll_offset.x // self._cell
        shown = range(first, min(first + max(width - _TOKEN, 0) // self._cell, len(self._columns)))
        head = [Segment(f"{'layer':<{_TOKEN}}", quiet), *self._numbers(shown, quiet)]
        segments = head if y == 0 else self._token_cells(self.reading, place, shown)
        return Strip(segments).crop_extend(0, width, None).apply_style(self.rich_style)

    def _numbers(self, shown: range, quiet: Style) -> list[Segment]:
        """Return the header: every fifth layer number and the number under the cursor."""
        layers = self.reading["layers"] if self.reading else []
        line = [" "] * (len(shown) * self._cell)
        for column in shown:
            label = str(layers[column])
            start = (column - shown.start) * self._cell
            if layers[column] % 5 == 0 and abs(column - self.column) * self._cell > len(label):
                line[start : start + len(label)] = label[: len(line) - start]
        before = "".join(line)
        label, start = str(layers[self.column]), (self.column - shown.start) * self._cell
        if not 0 <= start < len(before):
            return [Segment(before, quiet)]
        start = max(min(start, len(before) - len(label)), 0)
        after = before[start + len(label) :]
        return [Segment(before[:start], quiet), Segment(label, Style(reverse=True)), Segment(after, quiet)]

    def _token_cells(self, reading: TokenReading, place: int, shown: range) -> list[Segment]:
        chosen, aside = place == self.token, place in self._aside
        text = shown_token(reading, place)[: _TOKEN - 2]
        quiet = looks_of(self.app).quiet if aside else Style()
        segments = [Segment(f"{'▸' if chosen else ' '}{text:<{_TOKEN - 1}}", quiet + Style(bold=chosen))]
        for column in shown:
            if chosen and column == self.column:
                segments.append(Segment("╋" * self._cell, Style(reverse=True, bold=True)))
            elif aside:
                segments.append(Segment("/" * self._cell, quiet))
            else:
                segments.append(self._cell_of(self._columns[column][place]))
        return segments

    def _cell_of(self, value: float) -> Segment:
        level = max(-_LEVELS, min(_LEVELS, round(value / MOST_SPREADS * _LEVELS)))
        if self.app.no_color:
            sign = "·" if level == 0 else "+" if level > 0 else "-"
            return Segment((sign if abs(level) < _LEVELS else sign * 2)[: self._cell].ljust(self._cell))
        return Segment(" " * self._cell, Style(bgcolor=shade(self.app, self.background_colors[1], level / _LEVELS)))
