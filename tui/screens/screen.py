"""What every screen has: a title, a line about the background, keys to go back, to export and to copy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, cast

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Footer, Static

from engine.errors import RequestError
from tui.exporting import Export
from tui.remedies import in_words
from tui.widgets.job_line import JobLine

if TYPE_CHECKING:
    from tui.app import LayerscopeApp


class LayerscopeScreen(Screen[None]):
    """A screen of the app."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "Back"),
        Binding("e", "export", "Export", show=False),
        Binding("y", "copy", "Copy", show=False),
    ]

    def compose(self) -> ComposeResult:
        """Title, content, background, keys."""
        yield Horizontal(Static(id="title", markup=False), Static(id="subtitle", markup=False), id="head")
        yield from self.compose_content()
        yield JobLine()
        yield Footer(show_command_palette=False)

    def compose_content(self) -> Iterator[Widget]:
        """What is between title and keys."""
        raise NotImplementedError

    @property
    def layerscope(self) -> LayerscopeApp:
        """The app."""
        return cast("LayerscopeApp", self.app)

    def entitle(self, title: str, subtitle: str = "") -> None:
        """Say what is shown."""
        self.query_one("#title", Static).update(title)
        self.query_one("#subtitle", Static).update(subtitle)

    def on_mount(self) -> None:
        """A screen opened while a job runs shows it at once."""
        self.query_one(JobLine).job = self.layerscope.jobs.current

    def exported(self) -> Export:
        """What `e` saves.

        Raises:
            RequestError: There is nothing to save.
        """
        raise RequestError("there is nothing to export here")

    def copied(self) -> str:
        """What `y` copies; empty if there is nothing."""
        return ""

    def action_back(self) -> None:
        """Return to the screen before."""
        self.app.pop_screen()

    def action_export(self) -> None:
        """Ask for a file and save what is seen."""
        from tui.screens.export import ExportScreen

        try:
            self.app.push_screen(ExportScreen(self.exported()))
        except RequestError as error:
            self.notify(in_words(error), severity="warning", markup=False)

    def action_copy(self) -> None:
        """Copy what is under the cursor."""
        text = self.copied()
        if text:
            self.layerscope.copy(text)
        else:
            self.notify("there is nothing under the cursor to copy", severity="warning")
