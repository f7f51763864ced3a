"""A text projected on a direction: one row per token, one column per layer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich.text import Text
from textual import on
from textual.binding import Binding, BindingType
from textual.widget import Widget
from textual.widgets import Input, Static

from engine.errors import LayerscopeError, RequestError
from engine.jobs import Job
from engine.plots.tokens_text import compared_methods, describe_token, shown_token
from engine.records.files import AUTO_METHOD, METHODS, CaptureRecord, count_prompts
from engine.store.catalog import show_capture
from tui.directions import DirectionCache, ReadingRequest, read_along
from tui.exporting import Export
from tui.jobs import JobEnded, JobMoved
from tui.screens.screen import LayerscopeScreen, describe_step
from tui.widgets.heat_map import HeatMap
from tui.widgets.words import Words

if TYPE_CHECKING:
    from engine.records.files import TokenReading


class TokensScreen(LayerscopeScreen):
    """The tokens of a text by layer, along a capture's direction.

    Args:
        store: The folder.
        name: A capture of pairs.
        layer: The layer to select first; the leading one if None.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("i,slash", "type", "Enter text", key_display="i"),
        Binding("n", "prompt(1)", "Next prompt"),
        Binding("N", "prompt(-1)", "Previous prompt", show=False),
        Binding("m", "method", "Method", tooltip="Switch the extraction method"),
        Binding("q", "back", "Back", show=False),
    ]

    def __init__(self, store: Path, name: str, layer: int | None = None) -> None:
        super().__init__()
        self.store, self.capture = store, name
        self._layer = layer
        self._method: str = AUTO_METHOD
        self._prompt = 0
        self._directions = DirectionCache(store, name)
        self._text = ""
        self._record: CaptureRecord | None = None
        self._job: Job | None = None

    def compose_content(self) -> Iterator[Widget]:
        """Yield the text field, the heat map and the description of the selected cell."""
        yield Input(placeholder="your text; Enter reads it", id="text")
        yield HeatMap()
        yield Words(id="cell")

    def on_mount(self) -> None:
        """Read the capture's first prompt."""
        super().on_mount()
        self.query_one("#text", Input).display = False
        try:
            self._record = show_capture(self.capture, store=self.store)
        except LayerscopeError as error:
            self._say(error.said("app"))
            return
        self.query_one(HeatMap).focus()
        self._read()

    @on(Input.Submitted, "#text")
    def read_text(self, event: Input.Submitted) -> None:
        """Read the typed text, or the capture's prompt if the field is empty."""
        self._text = event.value
        event.input.display = False
        self.query_one(HeatMap).focus()
        self._read()

    @on(HeatMap.Moved)
    def show_selected(self, message: HeatMap.Moved) -> None:
        """Describe the selected cell."""
        reading = self.query_one(HeatMap).reading
        if reading is not None:
            self._layer = message.layer
            self._say("\n".join([describe_token(reading, message.token, message.layer), *_notes(reading)]))

    def on_job_moved(self, message: JobMoved) -> None:
        """Show what the job is doing while there is nothing else to show."""
        if message.job is self._job and self.query_one(HeatMap).reading is None:
            self._say(describe_step(message.job))

    def on_job_ended(self, message: JobEnded) -> None:
        """Show the reading, unless a newer one was requested."""
        job = message.job
        if job is not self._job:
            return
        if job.status == "done":
            reading: TokenReading = job.result
            self._method = reading["method"]
            self.query_one(HeatMap).reading = reading
            self._update_title()
        else:
            self._say(job.error or "cancelled; press i to enter a text or n for the next prompt")

    def action_type(self) -> None:
        """Focus the text field."""
        field = self.query_one("#text", Input)
        field.display = True
        field.focus()

    def action_back(self) -> None:
        """Close the text field if it is open, else cancel the job and leave the screen."""
        field = self.query_one("#text", Input)
        if field.display:
            field.display = False
            self.query_one(HeatMap).focus()
        else:
            if self._job is not None:
                self._job.cancel()
            super().action_back()

    def action_prompt(self, step: int) -> None:
        """Read another prompt: the positive one of a pair, then the negative one."""
        if self._record is not None:
            self._text = ""
            self._prompt = (self._prompt + step) % count_prompts(self._record)
            self._read()

    def action_method(self) -> None:
        """Switch to the next extraction method."""
        methods = [*METHODS]
        place = methods.index(self._method) + 1 if self._method in methods else 0
        self._method = methods[place % len(methods)]
        self._read()

    def make_export(self) -> Export:
        """Return the value of every token at every layer, and the figure."""
        reading = self.query_one(HeatMap).reading
        if reading is None:
            raise RequestError("nothing has been read yet")
        shown = reading

        def draw() -> Any:  # noqa: ANN401 - a matplotlib figure; matplotlib is imported only to draw
            from engine.plots.tokens_figure import draw_tokens

            return draw_tokens(shown)

        rows = [
            {
                "token": token,
                "text": shown_token(shown, token),
                "set_aside": token in shown.get("set_aside", [0]),
                **{str(layer): shown["values"][layer][token] for layer in shown["layers"]},
            }
            for token in range(len(shown["tokens"]))
        ]
        return Export(f"{self.capture}-tokens", rows, draw, shown["prompt"][:200])

    def text_to_copy(self) -> str:
        """Return the description of the selected cell."""
        heat = self.query_one(HeatMap)
        return describe_token(heat.reading, heat.token, heat.chosen_layer) if heat.reading else ""

    def _read(self) -> None:
        if self._record is None:
            return
        self.jobs.drop(self._job)
        request = ReadingRequest(self._directions, self._method, self._layer, self._text, self._prompt)
        models = self.models
        self._update_title()
        if self.query_one(HeatMap).reading is None:
            self._say(self.before_start)
        self._job = self.jobs.start(f"reading {self._source()}", lambda job: read_along(request, models, job), self)

    def _update_title(self) -> None:
        self.set_title(f"{self.capture} · {self._method}", f"{self._source()} · orange +, blue -, / not colored")

    def _source(self) -> str:
        """Return where the text comes from."""
        if self._text or self._record is None:
            return "your text"
        name = ("positive", "negative")[self._prompt % 2]
        return f"{name} prompt of pair {self._prompt // 2 + 1} of {self._record['num_pairs']}"

    def _say(self, text: str) -> None:
        self.query_one("#cell", Static).update(Text(text))


def _notes(reading: TokenReading) -> list[str]:
    compared = [compared_methods(reading["methods"])] if "methods" in reading else []
    return [*compared, *(f"warning: {warning}" for warning in reading["warnings"])]
