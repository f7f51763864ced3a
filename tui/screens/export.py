"""Where to save what is seen."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from engine.errors import LayerscopeError
from engine.inputs import user_path
from tui.exporting import Export, save_export
from tui.remedies import in_words


class ExportScreen(ModalScreen[None]):
    """Asks for a file name; the suffix says the format.

    Args:
        export: What to save.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", "Cancel")]

    def __init__(self, export: Export) -> None:
        super().__init__()
        self._export = export
        self._refused = ""

    def compose(self) -> ComposeResult:
        """The question and what can be answered."""
        formats = self._export.formats
        with Vertical(id="dialog"):
            yield Static("Save what is shown as", markup=False)
            yield Input(f"{self._export.name}{formats[0]}", select_on_focus=False)
            yield Static(f"{', '.join(formats)} · Enter saves · Esc cancels", classes="quiet", id="said", markup=False)

    @on(Input.Submitted)
    def save(self, event: Input.Submitted) -> None:
        """Save in a thread: drawing takes a moment. Enter a second time on a file that is there replaces it."""
        try:
            path = user_path(event.value.strip())
        except LayerscopeError as error:
            self.query_one("#said", Static).update(in_words(error))
            return
        replace = self._refused == event.value
        self._refused = event.value if path.exists() else ""
        self.run_worker(partial(self._save, path, replace=replace), thread=True, exclusive=True, exit_on_error=False)

    def _save(self, path: Path, *, replace: bool) -> None:
        try:
            saved = save_export(self._export, path, replace=replace)
        except LayerscopeError as error:
            self.app.call_from_thread(self.query_one("#said", Static).update, in_words(error))
        else:
            self.app.call_from_thread(self._end, saved)

    def _end(self, saved: Path) -> None:
        self.dismiss()
        self.app.notify(f"saved {saved}", markup=False)
