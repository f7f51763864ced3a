"""The library: a live list of captures, with a preview of the selected one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import on, work
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Input, Static
from textual.worker import WorkerCancelled, get_current_worker

from engine.errors import LayerscopeError, RequestError, visible
from engine.plots.captures_text import score_and_interval
from engine.plots.comparison_text import MOST_CAPTURES
from engine.plots.findings import p_in_words
from engine.store.names import capture_command
from engine.store.summaries import COLUMNS, CaptureSummary
from tui.exporting import Export
from tui.screens.screen import LayerscopeScreen
from tui.store_feed import ShownCaptures, StoreChange, StoreReader, watch_store
from tui.widgets.charts import CapturePreview
from tui.widgets.rows import MARK, Column, RowsView

_LONGEST_PATH = 40


@dataclass
class StoreRead(Message):
    """Part of the store was read."""

    change: StoreChange


@dataclass
class StoreUnreadable(Message):
    """The store cannot be read.

    Attributes:
        problem: The error, with what to do next.
    """

    problem: str


class LibraryScreen(LayerscopeScreen):
    """All captures of a store.

    Args:
        store: The folder.
        filter_text: The initial filter.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "clear", "Clear filter and marks", show=False),
        Binding("enter", "open", "Open", show=True),
        Binding("slash", "filter", "Filter", key_display="/", tooltip="Filter by words or column values"),
        Binding("s", "sort", "Sort", tooltip="Sort by the next column"),
        Binding("S", "reverse", "Reverse order", show=False),
        Binding("space", "mark", "Mark", tooltip="Mark or unmark for a comparison"),
        Binding("c", "compare", "Compare", tooltip="Compare the marked captures"),
        Binding("t", "tokens", "Tokens", tooltip="Project the tokens of a text on the direction"),
        Binding("n", "capture", "New", tooltip="Create a new capture"),
        Binding("f2,R", "rename", "Rename", show=False, tooltip="Rename the selected capture"),
        Binding("d,delete", "delete", "Delete", show=False, tooltip="Delete the selected capture, after a question"),
        Binding("q", "app.quit", "Quit"),
    ]

    def __init__(self, store: Path, filter_text: str = "") -> None:
        super().__init__()
        self.store = store
        self._reader = StoreReader(store)
        self._filter_text = filter_text
        self._captures = ShownCaptures()
        self._unread = 0
        self._problem = ""
        self._columns = _columns(lambda name: name in self._captures.marked)

    def compose_content(self) -> Iterator[Widget]:
        """Yield the filter, the table and the preview."""
        yield Input(placeholder="words, or column:value such as concept:honesty pairs:>=30 score:>1", id="filter")
        with Container(id="body"):
            yield RowsView(self._columns, key=lambda summary: summary.name, id="captures")
            yield CapturePreview(id="preview")

    def on_mount(self) -> None:
        """Apply the initial filter and start watching the store."""
        super().on_mount()
        field = self.query_one("#filter", Input)
        field.value = self._filter_text
        field.display = bool(self._filter_text)
        self.query_one(RowsView).focus()
        self._update_title()
        self._keep_reading()

    @work(thread=True, group="read")
    def _read_store(self) -> None:
        """Read the changes in a thread; `_keep_reading` makes one call at a time."""
        worker = get_current_worker()
        try:
            for change in self._reader.changes():
                self.post_message(StoreRead(change))
                if worker.is_cancelled:  # checked after posting: the reader does not repeat a change
                    return
        except LayerscopeError as error:
            self.post_message(StoreUnreadable(error.said("app")))

    @work(exclusive=True, group="watch")
    async def _keep_reading(self) -> None:
        """Read the store now and after every change."""
        async for _ in watch_store(self.store):
            with suppress(WorkerCancelled):  # the app is closing and cancels this worker next
                await self._read_store().wait()

    @on(StoreRead)
    def show_change(self, message: StoreRead) -> None:
        """Update the table."""
        self._problem, self._unread = "", message.change.left
        self._captures.update(message.change.summaries, message.change.gone)
        self._show()

    @on(StoreUnreadable)
    def show_problem(self, message: StoreUnreadable) -> None:
        """Show the error in place of a preview."""
        self._problem = message.problem
        self._update_title()
        self._preview(None)

    @on(Input.Changed, "#filter")
    def apply_filter(self, event: Input.Changed) -> None:
        """Filter as the user types; an incomplete filter leaves the table unchanged."""
        try:
            self._captures.set_filter(event.value)
        except RequestError as error:
            self.query_one("#subtitle", Static).update(error.said("app"))
            return
        self._show()

    @on(Input.Submitted, "#filter")
    def leave_filter(self) -> None:
        """Move the focus to the table and keep the filter."""
        self.query_one("#filter", Input).display = bool(self._captures.filter_text)
        self.query_one(RowsView).focus()

    @on(RowsView.Moved)
    def show_preview(self, message: RowsView.Moved) -> None:
        """Preview the selected capture."""
        self._preview(message.row if isinstance(message.row, CaptureSummary) else None)

    @on(RowsView.Chosen)
    def open_chosen(self) -> None:
        """Open the chosen capture."""
        self.action_open()

    @on(RowsView.SortAsked)
    def sort_by_header(self, message: RowsView.SortAsked) -> None:
        """Sort by the clicked header; a second click reverses the order."""
        self._captures.sort_by(message.key)
        self._show()

    def action_open(self) -> None:
        """Open the selected capture."""
        from tui.screens.ranking import RankingScreen

        summary = self._selected()
        if summary and summary.problem:
            self.notify(summary.complaint, title="cannot be opened", severity="error", markup=False)
        elif summary:
            self.app.push_screen(RankingScreen(self.store, summary.name))

    def action_filter(self) -> None:
        """Focus the filter."""
        field = self.query_one("#filter", Input)
        field.display = True
        field.focus()

    def action_clear(self) -> None:
        """Clear the filter and all marks."""
        field = self.query_one("#filter", Input)
        field.value, field.display = "", False
        self._captures.marked.clear()
        self.query_one(RowsView).focus()
        self._show()

    def action_sort(self) -> None:
        """Sort by the next column."""
        self._captures.sort_by_next([column.key for column in self._columns if column.key])
        self._show()

    def action_reverse(self) -> None:
        """Reverse the order."""
        self._captures.sort_by(self._captures.sorted_by[0])
        self._show()

    def action_mark(self) -> None:
        """Mark or unmark the selected capture and move to the next."""
        summary = self._selected()
        if summary is None:
            return
        self._captures.toggle_mark(summary.name)
        self.query_one(RowsView).cursor += 1
        self.query_one(RowsView).refresh()
        self._update_title()

    def action_compare(self) -> None:
        """Compare the marked captures."""
        from tui.screens.compare import CompareScreen

        marked = list(self._captures.marked)
        if 2 <= len(marked) <= MOST_CAPTURES:
            self.app.push_screen(CompareScreen(self.store, marked))
        else:
            self.notify(f"mark 2 to {MOST_CAPTURES} captures with Space, then press c", severity="warning")

    def action_tokens(self) -> None:
        """Read a text along the direction of the selected capture."""
        from tui.screens.tokens import TokensScreen

        summary = self._selected()
        if summary and summary.pairs and not summary.problem:
            self.app.push_screen(TokensScreen(self.store, summary.name))
        else:
            self.notify("select a capture of pairs: a direction needs two classes", severity="warning")

    def action_capture(self) -> None:
        """Open the form for a new capture."""
        from tui.screens.capture import CaptureScreen

        self.app.push_screen(CaptureScreen(self.store))

    def action_delete(self) -> None:
        """Ask whether to delete the selected capture, damaged or not."""
        summary = self._selected()
        if summary is not None:
            self._find_files(summary.name)

    @work(thread=True, exclusive=True, group="delete")
    def _find_files(self, name: str) -> None:
        """Ask about the files of a capture once they are found: the header of each file of directions is read."""
        from engine.store.delete import capture_files, kept_directions

        try:
            files, kept = capture_files(name, store=self.store), kept_directions(name, store=self.store)
        except LayerscopeError as error:
            tell = partial(self.notify, error.said("app"), title="cannot be deleted", severity="error", markup=False)
            self.app.call_from_thread(tell)
        else:
            self.app.call_from_thread(self._ask_to_delete, name, files, kept)

    def _ask_to_delete(self, name: str, files: list[str], kept: list[str]) -> None:
        from tui.screens.manage import DeleteScreen

        if self.is_current:
            self.app.push_screen(DeleteScreen(name, self.store, files, kept))

    def action_rename(self) -> None:
        """Ask for a new name of the selected capture."""
        from tui.screens.manage import RenameScreen

        summary = self._selected()
        if summary is not None:
            self.app.push_screen(RenameScreen(summary.name, self.store))

    def make_export(self) -> Export:
        """Return the table as shown."""
        rows = [{key: value(summary) for key, value in COLUMNS.items()} for summary in self.query_one(RowsView).rows]
        if not rows:
            raise RequestError("there are no captures to export")
        return Export(f"{self.store.name}-captures", rows)

    def text_to_copy(self) -> str:
        """Return the name of the selected capture."""
        summary = self._selected()
        return summary.name if summary else ""

    def _selected(self) -> CaptureSummary | None:
        row: CaptureSummary | None = self.query_one(RowsView).row
        return row

    def _show(self) -> None:
        self.query_one(RowsView).show_rows(self._captures.rows(), sorted_by=self._captures.sorted_by)
        self._update_title()

    def _update_title(self) -> None:
        counts = self._captures.describe(len(self.query_one(RowsView).rows), self._unread)
        self.set_title(_short(self.store), "cannot be read" if self._problem else counts)

    def _preview(self, summary: CaptureSummary | None) -> None:
        preview = self.query_one(CapturePreview)
        if summary is None:
            preview.show_text(self._problem or self._empty())
        else:
            preview.show_capture(summary, self.store)

    def _empty(self) -> str:
        if len(self._captures):
            return "no capture matches the filter; Esc clears it"
        return (
            f"no captures in {self.store} yet. Press n to create one, or run in another terminal:\n"
            f"  {capture_command(self.store)}"
        )


def _columns(is_marked: Callable[[str], bool]) -> list[Column[CaptureSummary]]:
    return [
        Column("", "", 1, lambda summary, _width: MARK if is_marked(summary.name) else "", order=0),
        Column("name", "name", 17, _name, grows=True, order=0),
        Column("model", "model", 8, lambda summary, _width: summary.model, order=5),
        Column("concept", "concept", 11, lambda summary, _width: summary.concept, order=4),
        Column("pairs", "pairs", 5, lambda summary, _width: str(summary.pairs or ""), right=True, order=3),
        Column("layer", "best", 4, _best, right=True, order=1),
        Column("score", "d' (95%)", 20, lambda summary, _width: score_and_interval(summary), right=True, order=2),
        Column("p", "p", 6, _p_value, right=True, order=6),
        Column("saved", "saved UTC", 12, lambda summary, _width: _time(summary.created), order=7),
    ]


def _name(summary: CaptureSummary, _width: int) -> Text:
    text = f"✗ {summary.name}: {summary.problem}" if summary.problem else summary.name
    return Text(visible(text).replace("\n", "\\n"), style="italic" if summary.problem else "")


def _best(summary: CaptureSummary, _width: int) -> str:
    return "" if summary.best_layer is None else str(summary.best_layer)


def _p_value(summary: CaptureSummary, _width: int) -> str:
    return "" if summary.p_value is None else p_in_words(summary.p_value)


def _time(created: str) -> str:
    """Return month, day and time for the current year, else the date."""
    this_year = created.startswith(str(datetime.now(UTC).year))
    return created[5:16].replace("T", " ") if this_year else created[:10]


def _short(store: Path) -> str:
    """Return the folder relative to the current or home folder, cut on the left."""
    try:
        path = str(store.relative_to(Path.cwd()))
    except ValueError:
        path = str(store).replace(str(Path.home()), "~", 1)
    return path if len(path) <= _LONGEST_PATH else f"…{path[-_LONGEST_PATH + 1 :]}"
