"""The base of all screens: title, job line, footer and shared keys."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from textwrap import wrap
from typing import ClassVar, cast

from rich.cells import cell_len, set_cell_size
from rich.text import Text
from textual import on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.reactive import reactive
from textual.screen import ModalScreen, Screen
from textual.widget import Widget
from textual.widgets import Footer, Input, Static
from textual.widgets._footer import FooterKey  # not exported, and what `Footer.compose` yields

from engine.errors import RequestError, visible
from engine.jobs import Job
from tui.exporting import Export
from tui.jobs import Jobs
from tui.models import ModelCache
from tui.widgets.rows import Column, RowsView
from tui.widgets.words import Words

_BARS = (20, 8, 0)
_CANCEL = " · ctrl+x cancels"
_ALWAYS = {"app.quit", "help", "back"}
KeyRow = tuple[str, str]


class BackgroundApp(App[None]):
    """What screens need from the app.

    Attributes:
        jobs: Background jobs.
        models: The loaded model.
    """

    jobs: Jobs
    models: ModelCache


class JobLine(Words):
    """Progress of the running job; hidden when none runs."""

    job: reactive[Job | None] = reactive(None, always_update=True)

    def watch_job(self, job: Job | None) -> None:
        """Show or hide the line."""
        running = job is not None and not job.finished
        self.set_class(running, "-running")
        if job is not None and running:
            self.update(describe_job(job, self.app.size.width - 2))  # it has no size of its own until it is shown

    def on_resize(self) -> None:
        """Fit the line to the new width."""
        self.watch_job(self.job)


def describe_job(job: Job, width: int = 80) -> str:
    """Return a job's progress as one line: with a shorter bar, or with a part of its title, if there is little room.

    Example:
        >>> describe_job(Job("capturing warmth", step="running prompts", done=1, total=2))
        'capturing warmth: running prompts ━━━━━━━━━━╌╌╌╌╌╌╌╌╌╌ 1/2 · ctrl+x cancels'
        >>> describe_job(Job("capturing warmth", step="running prompts", done=1, total=2), 40)
        'capturing warmth: r… 1/2 · ctrl+x cancels'
    """
    what = visible(f"{job.title}: {job.step or job.status}")
    count = f" {job.done}/{job.total}" if job.total else f" {job.done}" if job.done else ""
    for columns in _BARS if job.total else (0,):
        filled = job.done * columns // (job.total or 1)
        bar = f" {'━' * filled}{'╌' * (columns - filled)}" if columns else ""
        if cell_len(what + bar + count + _CANCEL) <= width:
            return f"{what}{bar}{count}{_CANCEL}"
    room = width - len(count + _CANCEL)
    return f"{set_cell_size(what, max(room - 1, 0)).rstrip()}…{count}{_CANCEL}"


def describe_step(job: Job) -> str:
    """Return what a job is doing and how far it is, for the screen that waits for its result.

    Example:
        >>> describe_step(Job("steering", step="writing: steered", done=12, total=120))
        'writing: steered, 12 of 120; ctrl+x cancels'
    """
    far = f", {job.done:,} of {job.total:,}" if job.total else f", {job.done:,}" if job.done else ""
    return f"{job.step or job.status}{far}; ctrl+x cancels"


class KeyFooter(Footer):
    """The keys of a screen that fit; those that leave it and `? Help`, which lists all, always do."""

    def compose(self) -> ComposeResult:
        """Yield the keys."""
        keys = [key for key in super().compose() if isinstance(key, FooterKey)]
        widths = {key: cell_len(f" {key.key_display} {key.description} ") for key in keys}
        room = self.app.size.width - sum(widths[key] for key in keys if key.action in _ALWAYS)
        for key in keys:
            if key.action not in _ALWAYS:
                room -= widths[key]
                if room < 0:
                    continue
            yield key

    def on_resize(self) -> None:
        """Show the keys that fit the new width."""
        self.call_after_refresh(self.recompose)


class LayerscopeScreen(Screen[None]):
    """Base class of the full screens."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "Back"),
        Binding("e", "export", "Export to a file", show=False),
        Binding("y", "copy", "Copy the selected item", show=False),
    ]

    def compose(self) -> ComposeResult:
        """Yield title, content, job line and footer."""
        yield Horizontal(Words(id="title"), Words(id="subtitle"), id="head")
        yield from self.compose_content()
        yield JobLine()
        yield KeyFooter(show_command_palette=False)

    def compose_content(self) -> Iterator[Widget]:
        """Yield the widgets between title and footer."""
        raise NotImplementedError

    @property
    def jobs(self) -> Jobs:
        """Background jobs of the app."""
        return cast("BackgroundApp", self.app).jobs

    @property
    def models(self) -> ModelCache:
        """The loaded model."""
        return cast("BackgroundApp", self.app).models

    @property
    def before_start(self) -> str:
        """What to show until a new job reports its first step."""
        running = self.jobs.current
        return f"waiting for another job: {running.title}" if running is not None else "starting"

    def set_title(self, title: str, subtitle: str = "") -> None:
        """Set the title line."""
        self.query_one("#title", Static).update(title)
        self.query_one("#subtitle", Static).update(subtitle)

    def on_mount(self) -> None:
        """Show the job that is already running."""
        self.query_one(JobLine).job = self.jobs.current

    def make_export(self) -> Export:
        """Return what `e` saves.

        Raises:
            RequestError: There is nothing to save.
        """
        raise RequestError("there is nothing to export here")

    def text_to_copy(self) -> str:
        """Return what `y` copies; empty if there is nothing."""
        return ""

    def action_back(self) -> None:
        """Return to the previous screen."""
        self.app.pop_screen()

    def action_export(self) -> None:
        """Ask for a file name and save."""
        from tui.screens.export import ExportScreen

        try:
            self.app.push_screen(ExportScreen(self.make_export()))
        except RequestError as error:
            self.notify(error.said("app"), severity="warning", markup=False)

    def action_copy(self) -> None:
        """Copy the selected item to the clipboard, if the terminal supports that."""
        text = visible(self.text_to_copy())
        if not text:
            self.notify("there is nothing to copy here", severity="warning")
            return
        self.app.copy_to_clipboard(text)
        self.notify(
            f"{text}\n(if the clipboard is still empty, press e to save to a file)", title="copied", markup=False
        )


_KEY_WIDTH, _NARROW_KEY_WIDTH = 18, 9
_LEAST_ACTION_WIDTH = 20


class HelpScreen(ModalScreen[None]):
    """Searchable list of a screen's keys; long actions are wrapped.

    Args:
        screen: The screen whose keys to list.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark", "dismiss", "Close"),
        # The search field has the focus, and would take some of these keys.
        Binding("down", "scroll('move', 1)", show=False, priority=True),
        Binding("up", "scroll('move', -1)", show=False, priority=True),
        Binding("pagedown", "scroll('page', 1)", show=False, priority=True),
        Binding("pageup", "scroll('page', -1)", show=False, priority=True),
        Binding("home", "scroll('move', -1000)", show=False, priority=True),
        Binding("end", "scroll('move', 1000)", show=False, priority=True),
    ]

    def __init__(self, screen: Screen[object]) -> None:
        super().__init__()
        self._keys = list_keys(screen)

    def compose(self) -> ComposeResult:
        """Yield a search field and the list."""
        with Vertical(id="dialog", classes="-tall"):
            yield Input(placeholder="search the keys of this screen")
            yield RowsView[KeyRow]((), key=lambda row: row)
            yield Words("ctrl+p runs an action by name · Esc closes", classes="quiet")

    def on_resize(self) -> None:
        """Wrap the actions to the new width."""
        self.call_after_refresh(self._show)

    @on(Input.Changed)
    def search(self) -> None:
        """List the keys that match every word."""
        self._show()

    def action_scroll(self, how: str, rows: int) -> None:
        """Move the cursor of the list; while the search field has the focus, scroll the list at once."""
        view = self.query_one(RowsView)
        if view.has_focus:
            (view.action_page if how == "page" else view.action_move)(rows)
        else:
            view.scroll_relative(y=rows * (view.size.height - 2 if how == "page" else 1), animate=False)

    def _show(self) -> None:
        words = self.query_one(Input).value.lower().split()
        found = [row for row in self._keys if all(word in f"{row[0]} {row[1]}".lower() for word in words)]
        view = self.query_one(RowsView)
        width = view.size.width - view.styles.scrollbar_size_vertical  # also while there is no scrollbar
        keys = _KEY_WIDTH if width > _KEY_WIDTH + _LEAST_ACTION_WIDTH + 2 else _NARROW_KEY_WIDTH
        actions = max(width - keys - 2, 1)
        view.columns = [
            Column[KeyRow]("", "key", keys, lambda row, _width: Text(row[0], style="bold")),
            Column[KeyRow]("", "action", actions, lambda row, _width: row[1]),
        ]
        view.show_rows([line for row in found for line in _wrapped(row, keys, actions)])


def _wrapped(row: KeyRow, keys: int, actions: int) -> Iterator[KeyRow]:
    """Break a row into lines that fit the widths of its columns."""
    yield from zip_longest(wrap(row[0], keys), wrap(row[1], actions), fillvalue="")


def is_built_in(binding: Binding) -> bool:
    """Return whether Textual binds the key on every screen, as for the palette."""
    return binding.action in {"screen.copy_text", "screen.minimize", "command_palette"}


def describe_key(binding: Binding) -> str:
    """Return what a key does: its tooltip, else its one-word description."""
    return binding.tooltip or binding.description


def list_keys(screen: Screen[object]) -> list[KeyRow]:
    """Return a screen's keys with their descriptions, one row per action."""
    keys_of: dict[tuple[str, str], list[str]] = {}
    for active in screen.active_bindings.values():
        binding = active.binding
        if binding.description and active.enabled and not is_built_in(binding):
            keys_of.setdefault((binding.action, describe_key(binding)), []).append(screen.app.get_key_display(binding))
    return [(" ".join(dict.fromkeys(keys)), description) for (_, description), keys in keys_of.items()]
