"""A text read along a direction: a line for each token, a column for each layer, the cell under the cursor in words."""

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
from engine.plots.tokens_text import describe_token
from engine.records.files import CaptureRecord, count_prompts
from engine.store.catalog import show_capture
from tui.exporting import Export
from tui.messages import JobEnded
from tui.reading import METHODS, DirectionKeeper, ReadingRequest, read_along
from tui.remedies import in_words
from tui.screens.screen import LayerscopeScreen
from tui.widgets.heat_map import HeatMap

if TYPE_CHECKING:
    from engine.records.files import TokenReading
    from tui.jobs import Job


class TokensScreen(LayerscopeScreen):
    """Layers by tokens of a text, along the direction of a capture.

    Args:
        store: The folder.
        name: A capture of pairs.
        layer: The layer to look at first; the one that leads unless given.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("i,slash", "type", "Type a text", key_display="i"),
        Binding("n", "prompt(1)", "Next prompt"),
        Binding("N", "prompt(-1)", "Previous prompt", show=False),
        Binding("m", "method", "Method"),
        Binding("q", "back", "Back", show=False),
    ]

    def __init__(self, store: Path, name: str, layer: int | None = None) -> None:
        super().__init__()
        self.store, self.capture = store, name
        self._layer = layer
        self._method = METHODS[0]
        self._prompt = 0
        self._directions = DirectionKeeper(store, name)
        self._text = ""
        self._record: CaptureRecord | None = None
        self._job: Job | None = None

    def compose_content(self) -> Iterator[Widget]:
        """The text, the map, and the cell under the cursor in words."""
        yield Input(placeholder="a text of your own; Enter reads it", id="text")
        yield HeatMap()
        yield Static(id="cell", markup=False)

    def on_mount(self) -> None:
        """Begin with the capture's first prompt."""
        super().on_mount()
        self.query_one("#text", Input).display = False
        try:
            self._record = show_capture(self.capture, store=self.store)
        except LayerscopeError as error:
            self._say(in_words(error))
            return
        self.query_one(HeatMap).focus()
        self._read()

    @on(Input.Submitted, "#text")
    def take_text(self, event: Input.Submitted) -> None:
        """Read what was typed; nothing typed is the capture's prompt again."""
        self._text = event.value
        event.input.display = False
        self.query_one(HeatMap).focus()
        self._read()

    @on(HeatMap.Moved)
    def take_cursor(self, message: HeatMap.Moved) -> None:
        """Say what is under the cursor."""
        reading = self.query_one(HeatMap).reading
        if reading is not None:
            self._layer = message.layer
            self._say("\n".join([describe_token(reading, message.token, message.layer), *_warnings(reading)]))

    def on_job_ended(self, message: JobEnded) -> None:
        """Show what was read, unless something else has been asked for since."""
        job = message.job
        if job is not self._job:
            return
        if job.status == "done":
            self.query_one(HeatMap).reading = job.result
            self._entitle()
        else:
            self._say(job.error or "cancelled: i reads a text, n the next prompt")

    def action_type(self) -> None:
        """Type a text to read."""
        field = self.query_one("#text", Input)
        field.display = True
        field.focus()

    def action_back(self) -> None:
        """Out of the field first, if one is typing."""
        field = self.query_one("#text", Input)
        if field.display:
            field.display = False
            self.query_one(HeatMap).focus()
        else:
            if self._job is not None:
                self._job.cancel()
            super().action_back()

    def action_prompt(self, step: int) -> None:
        """Another of the capture's prompts: each pair's positive one, then its negative one."""
        if self._record is not None:
            self._text = ""
            self._prompt = (self._prompt + step) % count_prompts(self._record)
            self._read()

    def action_method(self) -> None:
        """Find the direction another way."""
        self._method = METHODS[(METHODS.index(self._method) + 1) % len(METHODS)]
        self._read()

    def exported(self) -> Export:
        """Every token's value at every layer, or the figure."""
        reading = self.query_one(HeatMap).reading
        if reading is None:
            raise RequestError("nothing has been read yet")
        shown = reading

        def draw() -> Any:  # noqa: ANN401 - a matplotlib figure, which is not imported here
            from engine.plots.tokens_figure import draw_tokens

            return draw_tokens(shown)

        rows = [
            {"token": token, "text": text, **{str(layer): shown["values"][layer][token] for layer in shown["layers"]}}
            for token, text in enumerate(shown["tokens"])
        ]
        return Export(f"{self.capture}-tokens", rows, draw, shown["prompt"][:200])

    def copied(self) -> str:
        """The cell under the cursor in words."""
        heat = self.query_one(HeatMap)
        return describe_token(heat.reading, heat.token, heat.chosen_layer) if heat.reading else ""

    def _read(self) -> None:
        if self._record is None:
            return
        if self._job is not None:
            self._job.cancel()
        request = ReadingRequest(self._directions, self._method, self._layer, self._text, self._prompt)
        models = self.layerscope.models
        self._entitle()
        if self.query_one(HeatMap).reading is None:
            self._say("the first text takes a moment: its model has to be loaded. ctrl+x stops it.")
        self._job = self.layerscope.jobs.start(
            f"reading {self._what()}", lambda job: read_along(request, models, job), self
        )

    def _entitle(self) -> None:
        self.entitle(f"{self.capture} · {self._method}", f"{self._what()} · orange: positive side, blue: negative side")

    def _what(self) -> str:
        """What is read, in words."""
        if self._text or self._record is None:
            return "a text of your own"
        if self._record["kind"] != "contrast":
            return f"prompt {self._prompt + 1} of {count_prompts(self._record)}"
        side = ("positive", "negative")[self._prompt % 2]
        return f"{side} prompt of pair {self._prompt // 2 + 1} of {self._record['num_pairs']}"

    def _say(self, text: str) -> None:
        self.query_one("#cell", Static).update(Text(text))


def _warnings(reading: TokenReading) -> list[str]:
    return [f"warning: {warning}" for warning in reading["warnings"]]
