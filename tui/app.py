"""The app: its screens, keys that hold everywhere, themes, and the background's news. Logic lives in the engine.

Screens other than the first are imported when they are opened: the first is to be seen at once.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen

from engine.models.placement import LoadOptions
from engine.plots.comparison_text import MOST_CAPTURES
from tui.jobs import Jobs
from tui.looks import COLOURS, DARK, LIGHT, THEMES
from tui.messages import JobEnded, JobMoved
from tui.models import ModelKeeper
from tui.screens.library import LibraryScreen
from tui.widgets.job_line import JobLine

_START_S = 1.0


class LayerscopeApp(App[None]):
    """Browse captures: which layers, how sure, and why.

    Args:
        store: The folder of captures.
        capture: A capture to open at once.
        layer: The layer to look at first in it.
        filter_text: What the library shows at first.
        theme: Name of a theme.
        load_options: How models are loaded.
    """

    TITLE = "layerscope"
    CSS_PATH = "app.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("T", "toggle_theme", "Dark or light", show=False),
        Binding("ctrl+x", "cancel_job", "Cancel what runs", show=False),
        Binding("ctrl+q", "quit", "Quit", show=False, priority=True),
    ]

    def __init__(
        self,
        store: Path,
        *,
        capture: str | None = None,
        layer: int | None = None,
        filter_text: str = "",
        theme: str | None = None,
        load_options: LoadOptions | None = None,
    ) -> None:
        super().__init__()
        self.HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide")]
        self.store = store
        self.jobs = Jobs(self)
        self.models = ModelKeeper(load_options or LoadOptions())
        self._capture, self._layer, self._filter_text = capture, layer, filter_text
        for known in THEMES:
            self.register_theme(known)
        self.theme = theme or DARK.name

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Colours of the charts, for themes that know nothing of charts."""
        return COLOURS

    def get_default_screen(self) -> Screen[None]:
        """The library."""
        return LibraryScreen(self.store, self._filter_text)

    def on_mount(self) -> None:
        """Open what was asked for. Garbage is collected from a moment later on: it would slow the start by a fifth."""
        self.set_timer(_START_S, gc.enable)
        if self._capture is not None:
            from tui.screens.ranking import RankingScreen

            self.push_screen(RankingScreen(self.store, self._capture, self._layer))

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """Everything that a key does here is in the command palette too."""
        from tui.screens.help import is_textuals_own

        for active in screen.active_bindings.values():
            node, binding, enabled = active.node, active.binding, active.enabled
            if binding.description and enabled and not is_textuals_own(binding):
                keys = self.get_key_display(binding)
                yield SystemCommand(
                    binding.description,
                    f"key {keys}",
                    lambda node=node, action=binding.action: self.call_later(self.run_action, action, node),
                )
        yield SystemCommand("Theme", "Choose a theme", self.action_change_theme)

    def action_help(self) -> None:
        """List the keys that work here."""
        from tui.screens.help import HelpScreen

        self.push_screen(HelpScreen(self.screen))

    def action_toggle_theme(self) -> None:
        """From dark to light and back."""
        self.theme = LIGHT.name if self.current_theme.dark else DARK.name

    def action_cancel_job(self) -> None:
        """Stop what runs in the background."""
        if self.jobs.current is None:
            self.notify("nothing is running")
        else:
            self.jobs.current.cancel()
            self.notify("stopping after the batch or layer that is being computed")

    def compare(self, names: list[str]) -> None:
        """Open the comparison of captures, if it can be made of so many."""
        from tui.screens.compare import CompareScreen

        if not 2 <= len(names) <= MOST_CAPTURES:
            self.notify(f"mark two to {MOST_CAPTURES} captures with space, then press c", severity="warning")
            return
        self.push_screen(CompareScreen(self.store, names))

    def copy(self, text: str) -> None:
        """Put a text into the terminal's clipboard, and say that not every terminal takes it."""
        self.copy_to_clipboard(text)
        self.notify(f"{text}\n(if your terminal did not take it: e saves to a file)", title="copied", markup=False)

    @on(JobMoved)
    @on(JobEnded)
    def show_job(self, message: JobMoved | JobEnded) -> None:
        """Tell every screen what goes on in the background."""
        from tui.capturing import SavedCapture

        for screen in self.screen_stack:
            for line in screen.query(JobLine):
                line.job = message.job
        job = message.job
        if isinstance(message, JobEnded) and job.status == "failed":
            self.notify(job.error, title=job.title, severity="error", timeout=15, markup=False)
        elif isinstance(message, JobEnded) and isinstance(job.result, SavedCapture):
            self._open_saved(job.result.name)
        elif isinstance(message, JobEnded) and job.status == "cancelled":
            self.notify(_after_cancel(job.kept), title=job.title, markup=False)

    def _open_saved(self, name: str) -> None:
        """Open a new capture, unless its maker has gone on to look at something else."""
        from tui.screens.ranking import RankingScreen

        if isinstance(self.screen, LibraryScreen):
            self.push_screen(RankingScreen(self.store, name))
        else:
            self.notify(f"{name} is saved: it is in the library", title="captured", markup=False)


def _after_cancel(kept: str) -> str:
    if not kept:
        return "cancelled; nothing half-done was saved"
    return f"cancelled; the shards of {kept} that were saved are kept: the same form goes on from them"
