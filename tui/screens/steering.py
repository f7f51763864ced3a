"""A model's answer with and without steering, at a layer and strength chosen by keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.binding import Binding, BindingType
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Input, Static

from engine.errors import LayerscopeError, RequestError
from engine.jobs import Job
from engine.plots.steering_text import name_text
from engine.plots.tokens_text import one_line
from engine.records.files import CaptureRecord
from engine.records.steering import SteeredTexts
from engine.store.catalog import show_capture
from tui.directions import DirectionCache, SteeringRequest, steer_along
from tui.exporting import Export
from tui.jobs import JobEnded, JobMoved
from tui.screens.screen import LayerscopeScreen, describe_step
from tui.widgets.text_panes import TextPanes
from tui.widgets.words import Words

_STEPS = 20  # steps of strength per unit
_FIRST_STEP = 2
_PAUSE_S = 0.3  # without a key before writing starts
_HINT = "Type what the user says; Enter lets the model answer with and without the direction."
_COLORS = "Orange: further towards the positive class than most of these tokens; blue: less far."
_SIGNS = "⁺: further towards the positive class than most of these tokens; ⁻: less far."
_CONTROL = "What the random direction does too is not an effect of the concept."


class SteeringScreen(LayerscopeScreen):
    """Answers to a prompt: unsteered, steered along a capture's direction, and along a random one.

    Args:
        store: The folder.
        name: A capture of pairs.
        layer: The layer to steer at first.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("i,slash", "type", "Prompt", key_display="i", tooltip="Enter a prompt"),
        Binding("left_square_bracket", "layer(-1)", "Layer", key_display="[ ]", tooltip="Previous layer"),
        Binding("right_square_bracket", "layer(1)", "Next layer", key_display="]", show=False),
        Binding("minus", "strength(-1)", "Strength", key_display="- +", tooltip="Less strength; below 0, the opposite"),
        Binding("plus,equals_sign", "strength(1)", "More strength", key_display="+", show=False),
        Binding("q", "back", "Back", show=False),
    ]

    def __init__(self, store: Path, name: str, layer: int) -> None:
        super().__init__()
        self.store, self.capture = store, name
        self._layer, self._step = layer, _FIRST_STEP
        self._prompt = ""
        self._directions = DirectionCache(store, name)
        self._record: CaptureRecord | None = None
        self._results: dict[tuple[str, int, int], SteeredTexts] = {}
        self._asked: tuple[str, int, int] = ("", 0, 0)
        self._job: Job | None = None
        self._timer: Timer | None = None

    def compose_content(self) -> Iterator[Widget]:
        """Yield the prompt field, the texts and the description of the selected token."""
        yield Input(placeholder="what the user says; Enter runs it", id="text")
        yield TextPanes()
        yield Words(id="cell")

    def on_mount(self) -> None:
        """Ask for a prompt."""
        super().on_mount()
        try:
            self._record = show_capture(self.capture, store=self.store)
        except LayerscopeError as error:
            self._say(error.said("app"))
            return
        self._update_title()
        self._say(_HINT)
        self.query_one("#text", Input).focus()

    @on(Input.Submitted, "#text")
    def run_prompt(self, event: Input.Submitted) -> None:
        """Let the model answer the prompt."""
        if not event.value.strip():
            self._say(_HINT)
            return
        self._prompt = event.value
        self._close_field()
        self._show_or_write()

    @on(TextPanes.Moved)
    def show_selected(self) -> None:
        """Describe the selected token."""
        panes = self.query_one(TextPanes)
        if panes.result is not None:
            legend = _SIGNS if self.app.no_color else _COLORS
            control = [_CONTROL] if panes.result["controls"] else []
            warnings = [f"warning: {warning}" for warning in panes.result["warnings"]]
            self._say("\n".join([_describe_token(panes), legend, *control, *warnings]))

    def on_job_moved(self, message: JobMoved) -> None:
        """Show what the job is doing while there is nothing else to show."""
        if message.job is self._job and self.query_one(TextPanes).result is None:
            self._say(describe_step(message.job))

    def on_job_ended(self, message: JobEnded) -> None:
        """Show the texts, unless others were requested meanwhile."""
        job = message.job
        if job is not self._job:
            return
        if job.status == "done":
            self._results[self._asked] = job.result
            self.query_one(TextPanes).result = job.result
        else:
            self._say(job.error or "cancelled; press i and Enter to write the texts again")

    def action_type(self) -> None:
        """Focus the prompt field."""
        field = self.query_one("#text", Input)
        field.value = self._prompt
        field.display = True
        field.focus()

    def action_back(self) -> None:
        """Close the prompt field if there are texts below it, else cancel the job and leave the screen."""
        if self.query_one("#text", Input).display and self._prompt:
            self._close_field()
            return
        if self._timer is not None:
            self._timer.stop()
        self.jobs.drop(self._job)
        super().action_back()

    def action_layer(self, step: int) -> None:
        """Steer at the next captured layer."""
        layers = self._record["captured_layers"] if self._record else [self._layer]
        self._layer = layers[max(min(layers.index(self._layer) + step, len(layers) - 1), 0)]
        self._write_soon()

    def action_strength(self, step: int) -> None:
        """Change the strength by one step; the sign changes at 0."""
        self._step += step
        self._write_soon()

    def make_export(self) -> Export:
        """Return one row per token of each text."""
        panes = self.query_one(TextPanes)
        if panes.result is None:
            raise RequestError("nothing has been written yet")
        rows = [
            {
                "kind": text["kind"],
                "layer": panes.result["layer"],
                "strength": text["strength"],
                "perplexity": text["perplexity"],
                "shift": text["shift"],
                "token": place,
                "text": token,
                "projection": value,
            }
            for text in panes.texts
            for place, (token, value) in enumerate(
                zip(text.get("token_texts", []), text.get("projections", []), strict=True)
            )
        ]
        return Export(f"{self.capture}-steered", rows)

    def text_to_copy(self) -> str:
        """Return the selected text."""
        text = self.query_one(TextPanes).selected
        return text["text"] if text else ""

    def _close_field(self) -> None:
        self.query_one("#text", Input).display = False
        self.query_one(TextPanes).focus()

    def _write_soon(self) -> None:
        """Update the title at once, and write when the keys rest: writing takes seconds."""
        self._update_title()
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_timer(_PAUSE_S, self._show_or_write)

    def _show_or_write(self) -> None:
        """Show the texts for the prompt, layer and strength, or start to write them."""
        if not self._prompt or self._record is None:
            return
        self._update_title()
        asked = (self._prompt, self._layer, self._step)
        self.jobs.drop(self._job)
        if asked in self._results:
            self._job = None
            self.query_one(TextPanes).result = self._results[asked]
            return
        if self.query_one(TextPanes).result is None:
            self._say(self.before_start)
        earlier = next((result for key, result in self._results.items() if key[0] == self._prompt), None)
        request = SteeringRequest(self._directions, self._layer, self._step / _STEPS, self._prompt, earlier)
        models, self._asked = self.models, asked
        title = f"steering at layer {self._layer} by {request.strength:+g}"
        self._job = self.jobs.start(title, lambda job: steer_along(request, models, job), self)

    def _update_title(self) -> None:
        self.set_title(
            f"layer {self._layer} · strength {self._step / _STEPS:+.2f} · {self.capture}",
            one_line(self._prompt) or "mean difference of the pairs",
        )

    def _say(self, text: str) -> None:
        self.query_one("#cell", Static).update(Text(text))


def _describe_token(panes: TextPanes) -> str:
    text, result = panes.selected, panes.result
    if text is None or result is None or not text.get("projections"):
        return ""
    token, value = text["token_texts"][panes.token], text["projections"][panes.token]
    return (
        f"{name_text(text, result)}: token {panes.token} '{one_line(token)}' projects to {value:+.2f} at layer"
        f" {result['layer']} (0: negative class mean, 1: positive class mean)"
    )
