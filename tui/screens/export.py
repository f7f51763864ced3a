"""The dialog that saves the view of a screen to a file."""

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
from engine.store.names import output_path
from tui.exporting import Export, save_export
from tui.widgets.words import Words


class ExportScreen(ModalScreen[None]):
    """Asks for a file name; the suffix selects the format.

    Args:
        export: The view to save.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", "Cancel")]

    def __init__(self, export: Export) -> None:
        super().__init__()
        self._export = export
        self._refused = ""

    def compose(self) -> ComposeResult:
        """Yield the question, the field and the formats."""
        formats = self._export.formats
        with Vertical(id="dialog"):
            yield Words("Save this view as")
            yield Input(f"{self._export.name}{formats[0]}", select_on_focus=False)
            yield Words(f"{', '.join(formats)} · Enter saves · Esc cancels", classes="quiet", id="said")

    @on(Input.Submitted)
    def save(self, event: Input.Submitted) -> None:
        """Save in a thread, since drawing takes a moment.

        A second Enter replaces an existing file.
        """
        try:
            path = output_path(event.value.strip(), f"{self._export.name}{self._export.formats[0]}")
        except LayerscopeError as error:
            self.query_one("#said", Static).update(error.said("app"))
            return
        replace = self._refused == event.value
        self._refused = event.value if path.exists() else ""
        self.run_worker(partial(self._save, path, replace=replace), thread=True, exclusive=True, exit_on_error=False)

    def _save(self, path: Path, *, replace: bool) -> None:
        try:
            saved = save_export(self._export, path, replace=replace)
        except LayerscopeError as error:
            self.app.call_from_thread(self.query_one("#said", Static).update, error.said("app"))
        else:
            self.app.call_from_thread(self._end, saved)

    def _end(self, saved: Path) -> None:
        self.dismiss()
        self.app.notify(f"saved {saved}", markup=False)
