"""The app: global keys, themes and notifications about background jobs.

Screens other than the library are imported when they are opened, so that the library appears at once.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.filter import LineFilter
from textual.notifications import SeverityLevel
from textual.screen import ModalScreen, Screen

from engine.errors import visible
from engine.jobs import Job
from engine.models.placement import LoadOptions
from tui.jobs import JobEnded, JobMoved, Jobs
from tui.looks import COLOURS, DARK, LIGHT, THEMES
from tui.models import ModelCache
from tui.screens.library import LibraryScreen
from tui.screens.screen import BackgroundApp, HelpScreen, JobLine, describe_key, is_built_in
from tui.widgets.words import NoControls, Words

_STARTED_S = 1.0
_NO_CONTROLS = NoControls()


class QuitScreen(ModalScreen[None]):
    """Asks whether to stop the jobs and quit.

    Args:
        jobs: The running job and those that wait.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "app.quit", "Stop and quit"),
        Binding("escape,n", "dismiss", "Stay"),
    ]

    def __init__(self, jobs: Sequence[Job]) -> None:
        super().__init__()
        self._jobs = jobs

    def compose(self) -> ComposeResult:
        """Yield the question, the jobs and the keys."""
        with Vertical(id="dialog"):
            yield Words("Stop and quit?")
            yield Words("\n".join(f"  {job.title}: {_if_stopped(job)}" for job in self._jobs))
            yield Words("y stops and quits · n or Esc stays", classes="quiet")


def _if_stopped(job: Job) -> str:
    if job.status == "waiting":
        return "has not started"
    return "saved shards are kept" if job.kept else "nothing is saved yet"


class LayerscopeApp(BackgroundApp):
    """Browse, rank, compare and make captures.

    Args:
        store: The folder of captures.
        capture: A capture to open at start.
        layer: The layer to select first in it.
        filter_text: The library's initial filter.
        theme: Name of a theme.
        load_options: Dtype, device map and memory limits for loading models.

    Attributes:
        left: The jobs that had not ended when the app was closed; they are cancelled.
    """

    TITLE = "layerscope"
    CSS_PATH = "app.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("T", "toggle_theme", "Dark or light theme", show=False),
        Binding("ctrl+x", "cancel_job", "Cancel the running job", show=False),
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
        self.VERTICAL_BREAKPOINTS = [(0, "-short"), (24, "-high")]
        self.store = store
        self.jobs = Jobs(self)
        self.models = ModelCache(load_options or LoadOptions())
        self.left: list[Job] = []
        self._capture, self._layer, self._filter_text = capture, layer, filter_text
        for own in THEMES:
            self.register_theme(own)
        self.theme = theme or DARK.name

    def get_line_filters(self) -> Sequence[LineFilter]:
        """Return the filters of all drawn lines; control characters in data never reach the terminal."""
        return [*super().get_line_filters(), _NO_CONTROLS]

    def notify(
        self,
        message: str,
        *,
        title: str = "",
        severity: SeverityLevel = "information",
        timeout: float | None = None,
        markup: bool = True,
    ) -> None:
        """Show a notification with control characters as escapes."""
        super().notify(visible(message), title=visible(title), severity=severity, timeout=timeout, markup=markup)

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Return chart colors for themes without any."""
        return COLOURS

    def get_default_screen(self) -> Screen[None]:
        """Return the library."""
        return LibraryScreen(self.store, self._filter_text)

    def on_mount(self) -> None:
        """Open the requested capture, and start garbage collection later.

        It would slow the start by a fifth.
        """
        self.set_timer(_STARTED_S, gc.enable)
        if self._capture is not None:
            from tui.screens.ranking import RankingScreen

            self.push_screen(RankingScreen(self.store, self._capture, self._layer))

    def on_unmount(self) -> None:
        """Cancel all jobs, however the app is closed."""
        self.left = self.jobs.unfinished
        self.jobs.cancel_all()

    async def action_quit(self) -> None:
        """Quit, after a question if that stops a job."""
        running = [job for job in self.jobs.unfinished if not job.stopping]
        if not running or isinstance(self.screen, QuitScreen):
            self.exit()
        elif any(isinstance(screen, QuitScreen) for screen in self.screen_stack):
            while not isinstance(self.screen, QuitScreen):  # the command palette, for example, covers the question
                self.pop_screen()
        else:
            self.push_screen(QuitScreen(running))

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """Yield the current screen's key actions for the command palette."""
        for active in screen.active_bindings.values():
            node, binding, enabled = active.node, active.binding, active.enabled
            if binding.description and enabled and not is_built_in(binding):
                keys = self.get_key_display(binding)
                yield SystemCommand(
                    describe_key(binding),
                    f"key {keys}",
                    lambda node=node, action=binding.action: self.call_later(self.run_action, action, node),
                )
        yield SystemCommand("Theme", "Choose a theme", self.action_change_theme)

    def action_help(self) -> None:
        """List the keys of the current screen."""
        self.push_screen(HelpScreen(self.screen))

    def action_toggle_theme(self) -> None:
        """Switch between the dark and the light theme."""
        self.theme = LIGHT.name if self.current_theme.dark else DARK.name

    def action_cancel_job(self) -> None:
        """Cancel the running job."""
        if self.jobs.current is None:
            self.notify("nothing is running")
        else:
            self.jobs.current.cancel()
            self.notify("cancelling after the current batch or layer")

    @on(JobMoved)
    @on(JobEnded)
    def show_job(self, message: JobMoved | JobEnded) -> None:
        """Show a job's progress on every screen, and its result."""
        from tui.capturing import SavedCapture

        for screen in self.screen_stack:
            for line in screen.query(JobLine):
                line.job = message.job
        if not self.screen_stack:  # the app has ended
            return
        if isinstance(self.screen, QuitScreen) and not self.jobs.unfinished:
            self.screen.dismiss()
        job = message.job
        if isinstance(message, JobMoved) or not message.wanted:
            return
        if job.status == "failed":
            self.notify(job.error, title=job.title, severity="error", timeout=15, markup=False)
        elif isinstance(job.result, SavedCapture):
            self._open_saved(job.result.name)
        elif job.status == "cancelled":
            self.notify(_after_cancel(job.kept), title=job.title, markup=False)

    def _open_saved(self, name: str) -> None:
        """Open a new capture if the user is in the library, else only report it."""
        from tui.screens.ranking import RankingScreen

        if isinstance(self.screen, LibraryScreen):
            self.push_screen(RankingScreen(self.store, name))
        else:
            self.notify(f"{name} is in the library", title="captured", markup=False)


def _after_cancel(kept: str) -> str:
    if not kept:
        return "cancelled; nothing was saved"
    return f"cancelled; the shards of {kept} are kept: submit the same form to resume"


def describe_left(job: Job) -> str:
    """Say what became of a job that had not ended when the app was closed.

    Example:
        >>> describe_left(Job("capturing warmth", status="cancelled"))
        'stopped capturing warmth; nothing was saved'
    """
    if job.status == "done":
        return f"{job.title}: done"
    if job.error:
        return f"{job.title}: {job.error}"
    if job.kept:
        return f"stopped {job.title}; its shards are kept: to resume, submit the same form in the app"
    return f"stopped {job.title}{'; nothing was saved' if job.finished else ''}"
