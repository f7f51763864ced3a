"""The library: every capture of the store, live, with a preview of the one under the cursor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from textual import on, work
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.widget import Widget
from textual.widgets import Input, Static
from textual.worker import WorkerCancelled, get_current_worker

from engine.errors import LayerscopeError, RequestError
from engine.store.summaries import COLUMNS, CaptureSummary
from tui.exporting import Export
from tui.messages import CapturesRead, StoreUnreadable
from tui.remedies import in_words
from tui.screens.library_columns import capture_columns
from tui.screens.screen import LayerscopeScreen
from tui.shown_captures import ShownCaptures
from tui.store_reader import StoreReader
from tui.store_watch import store_changes
from tui.widgets.preview import CapturePreview
from tui.widgets.rows import RowsView

_LONGEST_PATH = 40


class LibraryScreen(LayerscopeScreen):
    """All captures.

    Args:
        store: The folder.
        filter_text: What is shown at first.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "clear", "Clear filter and marks", show=False),
        Binding("enter", "open", "Open", show=True),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("s", "sort", "Sort"),
        Binding("S", "reverse", "Reverse the order", show=False),
        Binding("space", "mark", "Mark"),
        Binding("c", "compare", "Compare"),
        Binding("t", "tokens", "Tokens"),
        Binding("n", "capture", "New"),
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
        self._columns = capture_columns(lambda name: name in self._captures.marked)

    def compose_content(self) -> Iterator[Widget]:
        """The filter, the table, and the preview."""
        yield Input(placeholder="words, or column:value such as concept:honesty pairs:>=30 score:>1", id="filter")
        with Container(id="body"):
            yield RowsView(self._columns, key=lambda summary: summary.name, id="captures")
            yield CapturePreview(id="preview")

    def on_mount(self) -> None:
        """Begin to watch the store."""
        super().on_mount()
        field = self.query_one("#filter", Input)
        field.value = self._filter_text
        field.display = bool(self._filter_text)
        self.query_one(RowsView).focus()
        self._entitle()
        self.watch_store()

    @work(thread=True, group="read")
    def read_store(self) -> None:
        """Read what changed; a screenful arrives at once. Only `watch_store` calls this, one at a time."""
        worker = get_current_worker()
        try:
            for change in self._reader.changes():
                self.post_message(CapturesRead(change.summaries, change.gone, change.left))
                if worker.is_cancelled:  # not before: the reader will not tell of these again
                    return
        except LayerscopeError as error:
            self.post_message(StoreUnreadable(in_words(error)))

    @work(exclusive=True, group="watch")
    async def watch_store(self) -> None:
        """Read the store, and again whenever it changes."""
        async for _ in store_changes(self.store):
            with suppress(WorkerCancelled):  # the app closes, and stops this one next
                await self.read_store().wait()

    @on(CapturesRead)
    def take_captures(self, message: CapturesRead) -> None:
        """Put what was read into the table."""
        self._problem, self._unread = "", message.left
        self._captures.take(message.summaries, message.gone)
        self._show()

    @on(StoreUnreadable)
    def take_problem(self, message: StoreUnreadable) -> None:
        """Say why nothing can be shown."""
        self._problem = message.problem
        self._entitle()
        self._preview(None)

    @on(Input.Changed, "#filter")
    def take_filter(self, event: Input.Changed) -> None:
        """Show what fits; while a word is half typed, what fitted before."""
        try:
            self._captures.narrow(event.value)
        except RequestError as error:
            self.query_one("#subtitle", Static).update(in_words(error))
            return
        self._show()

    @on(Input.Submitted, "#filter")
    def leave_filter(self) -> None:
        """On to the table; what was typed stays."""
        self.query_one("#filter", Input).display = bool(self._captures.filter_text)
        self.query_one(RowsView).focus()

    @on(RowsView.Moved)
    def take_cursor(self, message: RowsView.Moved) -> None:
        """Preview the capture under the cursor."""
        self._preview(message.row if isinstance(message.row, CaptureSummary) else None)

    @on(RowsView.Chosen)
    def take_choice(self) -> None:
        """Open it."""
        self.action_open()

    @on(RowsView.SortAsked)
    def take_sort(self, message: RowsView.SortAsked) -> None:
        """Sort by a header; a second click turns the order round."""
        self._captures.sort_by(message.key)
        self._show()

    def action_open(self) -> None:
        """Open the capture under the cursor."""
        from tui.screens.ranking import RankingScreen

        summary = self._under_cursor()
        if summary and summary.problem:
            self.notify(summary.complaint, title="cannot be opened", severity="error", markup=False)
        elif summary:
            self.app.push_screen(RankingScreen(self.store, summary.name))

    def action_filter(self) -> None:
        """Type what to show."""
        field = self.query_one("#filter", Input)
        field.display = True
        field.focus()

    def action_clear(self) -> None:
        """Everything again, nothing marked."""
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
        """Turn the order round."""
        self._captures.sort_by(self._captures.sorted_by[0])
        self._show()

    def action_mark(self) -> None:
        """Mark the capture under the cursor, or take its mark away, and go on to the next."""
        summary = self._under_cursor()
        if summary is None:
            return
        self._captures.mark(summary.name)
        self.query_one(RowsView).cursor += 1
        self.query_one(RowsView).refresh()
        self._entitle()

    def action_compare(self) -> None:
        """Compare the marked captures."""
        self.layerscope.compare(list(self._captures.marked))

    def action_tokens(self) -> None:
        """Read a text along the direction of the capture under the cursor."""
        from tui.screens.tokens import TokensScreen

        summary = self._under_cursor()
        if summary and summary.pairs and not summary.problem:
            self.app.push_screen(TokensScreen(self.store, summary.name))
        else:
            self.notify("choose a capture of pairs: a direction needs two sides", severity="warning")

    def action_capture(self) -> None:
        """Make a capture."""
        from tui.screens.capture import CaptureScreen

        self.app.push_screen(CaptureScreen(self.store))

    def exported(self) -> Export:
        """The table as it is shown."""
        rows = [{key: value(summary) for key, value in COLUMNS.items()} for summary in self.query_one(RowsView).rows]
        if not rows:
            raise RequestError("there are no captures to export")
        return Export(f"{self.store.name}-captures", rows)

    def copied(self) -> str:
        """The name under the cursor."""
        summary = self._under_cursor()
        return summary.name if summary else ""

    def _under_cursor(self) -> CaptureSummary | None:
        row: CaptureSummary | None = self.query_one(RowsView).row
        return row

    def _show(self) -> None:
        self.query_one(RowsView).show_rows(self._captures.rows(), sorted_by=self._captures.sorted_by)
        self._entitle()

    def _entitle(self) -> None:
        counted = self._captures.counted(len(self.query_one(RowsView).rows), self._unread)
        self.entitle(_short(self.store), "cannot be read" if self._problem else counted)

    def _preview(self, summary: CaptureSummary | None) -> None:
        preview = self.query_one(CapturePreview)
        if summary is None:
            preview.say(self._problem or self._empty())
        else:
            preview.show(summary, self.store)

    def _empty(self) -> str:
        if len(self._captures):
            return "no capture fits the filter; Esc shows all of them"
        return (
            f"no captures in {self.store} yet. Press n to make one, or in another terminal:\n"
            "  layerscope capture --concept honesty"
        )


def _short(store: Path) -> str:
    """A folder as a person would write it here; of a long path the end."""
    try:
        path = str(store.relative_to(Path.cwd()))
    except ValueError:
        path = str(store).replace(str(Path.home()), "~", 1)
    return path if len(path) <= _LONGEST_PATH else f"…{path[-_LONGEST_PATH + 1 :]}"
