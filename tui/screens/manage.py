"""The dialogs that delete and rename a capture."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input

from engine.errors import LayerscopeError
from engine.store.delete import delete_capture
from engine.store.ownership import origin_note
from tui.widgets.words import Words


class DeleteScreen(ModalScreen[None]):
    """Names the files of a capture and deletes them on `y`.

    Args:
        name: Name of the capture.
        store: The folder.
        files: Names of its files.
        kept: Names of the files of directions that stay.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "delete", "Delete"),
        Binding("escape,n", "dismiss", "Cancel"),
    ]

    def __init__(self, name: str, store: Path, files: list[str], kept: list[str]) -> None:
        super().__init__()
        self._capture, self._store, self._files, self._kept = name, store, files, kept

    def compose(self) -> ComposeResult:
        """Yield the question, the files and the keys."""
        with Vertical(id="dialog"):
            yield Words(f"Delete {self._capture}? This cannot be undone.")
            yield Words("\n".join(f"  {name}" for name in self._files))
            if self._kept:
                yield Words("These directions stay:\n" + "\n".join(f"  {name}" for name in self._kept))
            yield Words("y deletes · n or Esc cancels", classes="quiet")

    def action_delete(self) -> None:
        """Delete in a thread: a capture may have many shards."""
        self.app.run_worker(partial(_delete, self.app, self._capture, self._store), thread=True, exit_on_error=False)
        self.dismiss()


def _delete(app: App[object], name: str, store: Path) -> None:
    notify = partial(app.call_from_thread, app.notify, markup=False)
    try:
        deleted = delete_capture(name, store=store)
    except LayerscopeError as error:
        notify(error.said("app"), title="cannot be deleted", severity="error")
    else:
        notify(f"deleted {', '.join(deleted[:3])}{f' and {len(deleted) - 3} more' if len(deleted) > 3 else ''}")


class RenameScreen(ModalScreen[None]):
    """Asks for the new name of a capture and renames it on Enter.

    Args:
        name: Name of the capture.
        store: The folder.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", "Cancel")]

    def __init__(self, name: str, store: Path) -> None:
        super().__init__()
        self._capture, self._store = name, store

    def compose(self) -> ComposeResult:
        """Yield the question, the field and the keys."""
        with Vertical(id="dialog"):
            yield Words(f"Rename {self._capture}, with its saved directions, to")
            yield Input(self._capture)
            yield Words("Enter renames · Esc cancels", classes="quiet")

    @on(Input.Submitted)
    def rename(self, message: Input.Submitted) -> None:
        """Rename in a thread: records are read and checked."""
        new = message.value.strip()
        self.app.run_worker(
            partial(_rename, self.app, self._capture, new, self._store), thread=True, exit_on_error=False
        )
        self.dismiss()


def _rename(app: App[object], name: str, new: str, store: Path) -> None:
    from engine.store.manage import rename_capture

    notify = partial(app.call_from_thread, app.notify, markup=False)
    try:
        paths = rename_capture(name, new, store=store)
    except LayerscopeError as error:
        notify(error.said("app"), title="cannot be renamed", severity="error")
    else:
        note = origin_note(name, store=store)
        notify(f"renamed {name} to {paths.name}" + (f"; {note}, and stay" if note else ""))
