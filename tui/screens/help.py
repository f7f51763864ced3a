"""The keys that work where `?` was pressed, searchable."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen, Screen
from textual.widgets import Input, Static

from tui.widgets.rows import Column, RowsView

KeyRow = tuple[str, str]

_COLUMNS = (
    Column[KeyRow]("", "key", 18, lambda row, _width: Text(row[0], style="bold")),
    Column[KeyRow]("", "what it does", 20, lambda row, _width: row[1], grows=True),
)


class HelpScreen(ModalScreen[None]):
    """Lists keys.

    Args:
        asked_on: The screen that help is about.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,question_mark", "dismiss", "Close")]

    def __init__(self, asked_on: Screen[object]) -> None:
        super().__init__()
        self._keys = keys_of(asked_on)

    def compose(self) -> ComposeResult:
        """A field to search in, and what is found."""
        with Vertical(id="dialog", classes="-tall"):
            yield Input(placeholder="search the keys that work here")
            yield RowsView(_COLUMNS, key=lambda row: row)
            yield Static("ctrl+p runs any of them by name · Esc closes", classes="quiet", markup=False)

    def on_mount(self) -> None:
        """Everything, until something is typed."""
        self.query_one(RowsView).show_rows(self._keys)

    @on(Input.Changed)
    def search(self, event: Input.Changed) -> None:
        """Show what holds the text."""
        wanted = event.value.lower().split()
        found = [row for row in self._keys if all(word in f"{row[0]} {row[1]}".lower() for word in wanted)]
        self.query_one(RowsView).show_rows(found)


def is_textuals_own(binding: Binding) -> bool:
    """Whether a key does what Textual binds on every screen: marked text, maximised widgets, the palette itself."""
    return binding.action in {"screen.copy_text", "screen.minimize", "command_palette"}


def keys_of(screen: Screen[object]) -> list[KeyRow]:
    """Keys that work on a screen, those of one action together."""
    together: dict[tuple[str, str], list[str]] = {}
    for active in screen.active_bindings.values():
        binding = active.binding
        if binding.description and active.enabled and not is_textuals_own(binding):
            together.setdefault((binding.action, binding.description), []).append(screen.app.get_key_display(binding))
    return [(" ".join(dict.fromkeys(keys)), description) for (_, description), keys in together.items()]
