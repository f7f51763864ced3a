"""The dialog that asks before a capture is deleted."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import ClassVar

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen

from engine.errors import LayerscopeError
from engine.store.delete import delete_capture
from engine.store.directions import path_of
from engine.store.names import locate
from tui.widgets.words import Words


def files_of(name: str, store: Path) -> list[str]:
    """Return the names of the files that deleting a capture removes.

    Args:
        name: Name of the capture.
        store: The folder.

    Raises:
        LayerscopeError: The name is invalid, or a file is a link out of the store.
    """
    paths = locate(name, store)
    files = [path.name for path in (paths.record, paths.tensors, path_of(paths)) if path.exists()]
    return [*files, *([f"{paths.shards.name}/ (the shards)"] if paths.plan.exists() else [])]


class DeleteScreen(ModalScreen[None]):
    """Names the files of a capture and deletes them on `y`.

    Args:
        name: Name of the capture.
        store: The folder.
        files: Names of its files.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "delete", "Delete"),
        Binding("escape,n", "dismiss", "Cancel"),
    ]

    def __init__(self, name: str, store: Path, files: list[str]) -> None:
        super().__init__()
        self._capture, self._store, self._files = name, store, files

    def compose(self) -> ComposeResult:
        """Yield the question, the files and the keys."""
        with Vertical(id="dialog"):
            yield Words(f"Delete {self._capture}? This cannot be undone.")
            yield Words("\n".join(f"  {name}" for name in self._files))
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
