"""A table that draws only its visible rows, with a cursor and sortable headers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from rich.style import Style
from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from engine.errors import visible
from engine.plots.visible_text import visible_text

Row = TypeVar("Row")
MARK = "■"
"""The sign of a marked row."""


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A column of the table.

    Attributes:
        key: Sort key; empty if the column is not sortable.
        title: Header.
        width: Width in characters; the minimum for the column that grows.
        cell: Function from a row and the available width to the cell's text.
        right: Whether to align right.
        grows: Whether the column takes the remaining width.
        order: Columns with the highest order are hidden first when the table is too narrow.
    """

    key: str
    title: str
    width: int
    cell: Callable[[Row, int], str | Text]
    right: bool = False
    grows: bool = False
    order: int = 0


class RowsView(ScrollView, Generic[Row], can_focus=True, inherit_bindings=False):
    """The table. Set `columns`, then call `show_rows`."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"rows--header", "rows--cursor", "rows--even"}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("pagedown,ctrl+d", "page(1)", "Page down", show=False),
        Binding("pageup,ctrl+u", "page(-1)", "Page up", show=False),
        Binding("home,g", "move(-1000000000)", "First row", show=False),
        Binding("end,G", "move(1000000000)", "Last row", show=False),
        Binding("enter", "choose", "Open", show=False),
    ]

    cursor: reactive[int] = reactive(0)

    @dataclass
    class Moved(Message):
        """The cursor moved to another row."""

        view: RowsView[Any]
        row: object

    @dataclass
    class Chosen(Message):
        """The user chose a row with Enter or a double click."""

        view: RowsView[Any]
        row: object

    @dataclass
    class SortAsked(Message):
        """The user clicked a sortable header."""

        view: RowsView[Any]
        key: str

    def __init__(self, columns: Sequence[Column[Row]], *, key: Callable[[Row], object], id: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self.columns = list(columns)
        self._key = key
        self._rows: Sequence[Row] = ()
        self._sorted: tuple[str, bool] = ("", False)

    @property
    def _width(self) -> int:
        """Width in characters without the scrollbar."""
        return self.scrollable_content_region.width

    @property
    def rows(self) -> Sequence[Row]:
        """The rows in order."""
        return self._rows

    @property
    def row(self) -> Row | None:
        """The row under the cursor."""
        return self._rows[self.cursor] if self._rows else None

    def show_rows(self, rows: Sequence[Row], *, sorted_by: tuple[str, bool] = ("", False)) -> None:
        """Replace the rows; the cursor follows its row if that is still present.

        Args:
            rows: The rows in order.
            sorted_by: Key of the sorted column, and whether the order is descending.
        """
        before = None if self.row is None else self._key(self.row)
        self._rows, self._sorted = rows, sorted_by
        self.virtual_size = Size(self.size.width, len(rows) + 1)
        kept = next((place for place, row in enumerate(rows) if self._key(row) == before), None)
        place = min(self.cursor, max(len(rows) - 1, 0)) if kept is None else kept
        moved = place != self.cursor
        self.cursor = place
        if not moved:
            self._tell()
        self.refresh()

    def move_to(self, key: object) -> None:
        """Move the cursor to the row with a key, if there is one."""
        self.cursor = next((place for place, row in enumerate(self._rows) if self._key(row) == key), self.cursor)

    def validate_cursor(self, cursor: int) -> int:
        """Clamp the cursor to the existing rows."""
        return max(min(cursor, len(self._rows) - 1), 0)

    def watch_cursor(self) -> None:
        """Scroll to the cursor."""
        self.scroll_to_region(Region(0, self.cursor, 1, 2), animate=False, force=True)
        self.refresh()
        self._tell()

    def _tell(self) -> None:
        if self.is_mounted:
            self.post_message(self.Moved(self, self.row))

    def action_move(self, rows: int) -> None:
        """Move the cursor."""
        self.cursor += rows

    def action_page(self, pages: int) -> None:
        """Move the cursor by a page."""
        self.cursor += pages * max(self.size.height - 2, 1)

    def action_choose(self) -> None:
        """Choose the row under the cursor."""
        if self.row is not None:
            self.post_message(self.Chosen(self, self.row))

    def on_resize(self) -> None:
        """Update the scrollable size."""
        self.virtual_size = Size(self.size.width, len(self._rows) + 1)

    def on_click(self, event: events.Click) -> None:
        """Sort by a header, or move the cursor to a row; a double click chooses it."""
        if event.y == 0:
            column = self._column_at(event.x)
            if column and column.key:
                self.post_message(self.SortAsked(self, column.key))
            return
        place = event.y - 1 + self.scroll_offset.y
        if place < len(self._rows):
            self.cursor = place
            if event.chain == 2:
                self.action_choose()

    def render_line(self, y: int) -> Strip:
        """Draw the header or one visible row."""
        width = self._width
        if y == 0:
            return self._strip(self._header(), self.get_component_rich_style("rows--header"), width)
        place = y - 1 + self.scroll_offset.y
        if place >= len(self._rows):
            return Strip.blank(width, self.rich_style)
        style = self.rich_style
        if place == self.cursor:
            style = self.get_component_rich_style("rows--cursor" if self.has_focus else "rows--even")
        return self._strip(self._cells(self._rows[place]), style, width)

    def _cells(self, row: Row) -> Text:
        line = Text(no_wrap=True, end="")
        for column, width in self._layout():
            cell = column.cell(row, width)
            text = visible_text(Text(visible(cell)) if isinstance(cell, str) else cell)
            text.truncate(width, overflow="ellipsis")
            pad = " " * (width - text.cell_len)
            line.append_text(Text(pad) + text if column.right else text + Text(pad))
            line.append(" ")
        return line

    def _header(self) -> Text:
        line = Text(no_wrap=True, end="")
        key, descending = self._sorted
        for column, width in self._layout():
            mark = ("▼" if descending else "▲") if column.key and column.key == key else ""
            title = column.title[:width]
            line.append(f"{title:>{width}}{mark or ' '}" if column.right else f"{title + mark:<{width + 1}}")
        return line

    def _strip(self, line: Text, style: Style, width: int) -> Strip:
        segments = list(line.render(self.app.console))
        return Strip(segments, line.cell_len).crop_extend(0, width, None).apply_style(style)

    def _layout(self) -> list[tuple[Column[Row], int]]:
        """Return the columns that fit, with widths; the sorted column always fits."""
        shown = list(self.columns)
        while len(shown) > 1 and sum(column.width + 1 for column in shown) > self._width:
            shown.remove(max(shown, key=lambda column: -1 if column.key == self._sorted[0] else column.order))
        spare = max(self._width - sum(column.width + 1 for column in shown), 0)
        return [(column, column.width + (spare if column.grows else 0)) for column in shown]

    def _column_at(self, x: int) -> Column[Row] | None:
        left = 0
        for column, width in self._layout():
            left += width + 1
            if x < left:
                return column
        return None
