"""The form of a capture: says what it would cost, then runs it in the background."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import on
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.suggester import SuggestFromList
from textual.widget import Widget
from textual.widgets import Button, Input, Label, Static

from engine.capture.selection import DEFAULT_POSITIONS
from engine.concepts.catalog import list_concepts
from engine.concepts.pairs import DEFAULT_SAMPLES
from engine.errors import LayerscopeError
from engine.models.registry import DEFAULT_MODEL, list_models
from engine.records.captures import SourceEstimate
from tui.capturing import CaptureForm, CapturePlan, estimate_plan, plan_capture, run_plan
from tui.messages import JobEnded
from tui.remedies import in_words
from tui.screens.screen import LayerscopeScreen

if TYPE_CHECKING:
    from tui.jobs import Job


class CaptureScreen(LayerscopeScreen):
    """Asks what to capture. Enter says what it would cost; Enter again on the same form runs it.

    Args:
        store: Where to save.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "go", "Estimate, then capture", show=True),
        Binding("tab", "app.focus_next", "Next field", show=True),
    ]

    def __init__(self, store: Path) -> None:
        super().__init__()
        self.store = store
        self._estimated: CaptureForm | None = None
        self._asked: CaptureForm | None = None
        self._job: Job | None = None

    def compose_content(self) -> Iterator[Widget]:
        """The fields, what they lead to, and what there is to choose from."""
        models = [listing.alias for listing in list_models()]
        concepts = [concept.name for concept in list_concepts()]
        with VerticalScroll(id="form"):
            yield from _field("model", "Model", DEFAULT_MODEL, models, "an alias, a hub id, a folder or a .gguf file")
            yield from _field(
                "concept", "Concept", "", concepts, "a name, .toml, or pairs or prompts: .jsonl, .csv, .txt"
            )
            yield from _field("layers", "Layers", "all", ["all", "recommended"], "all, recommended, 14,15 or 10-20")
            yield from _field(
                "positions", "Positions", DEFAULT_POSITIONS, ["last", "all", "mean"], "last, all, mean, -2 or 2:10"
            )
            yield from _field("samples", "Pairs", str(DEFAULT_SAMPLES), [], "at most so many; 0 for every one")
            yield from _field("name", "Save as", "", [], "left empty: model_concept")
            with Horizontal(id="buttons"):
                yield Button("Estimate", id="estimate")
                yield Button("Capture", id="run", variant="primary")
            yield Static(id="said", markup=False)
            yield Static(_choices(models, concepts), classes="quiet", id="choices")

    def on_mount(self) -> None:
        """Begin with the concept: the rest has good values."""
        super().on_mount()
        self.entitle("New capture", f"into {self.store}")
        self._say("Enter estimates what it costs; Enter again captures")
        self.query_one("#concept", Input).focus()

    @on(Input.Submitted)
    def action_go(self) -> None:
        """Estimate a form; run one that has been estimated."""
        if self._form() == self._estimated:
            self.run_capture()
        else:
            self.estimate()

    @on(Button.Pressed, "#estimate")
    def estimate(self) -> None:
        """Say what it would cost."""
        plan = self._plan()
        if plan is None:
            return
        models = self.layerscope.models
        self._asked = self._form()
        self._say(f"loading {plan.model} to see what this costs")
        self._job = self.layerscope.jobs.start(
            f"estimating {plan.name}", lambda job: estimate_plan(plan, models, job), self
        )

    @on(Button.Pressed, "#run")
    def run_capture(self) -> None:
        """Run it in the background and go back to the library, where it will appear."""
        plan = self._plan()
        if plan is None:
            return
        models = self.layerscope.models
        self.layerscope.jobs.start(f"capturing {plan.name}", lambda job: run_plan(plan, models, job), self.app)
        self.action_back()

    def on_job_ended(self, message: JobEnded) -> None:
        """Show the estimate, unless another was asked for since."""
        job = message.job
        if job is not self._job:
            return
        if job.status == "done":
            self._estimated = self._asked
            self._say(f"{_in_words(job.result)}\nEnter captures; change a field to estimate again")
        else:
            self._say(job.error or "cancelled")

    def _form(self) -> CaptureForm:
        return CaptureForm(
            **{field: self.query_one(f"#{field}", Input).value for field in CaptureForm.__dataclass_fields__}
        )

    def _plan(self) -> CapturePlan | None:
        try:
            return plan_capture(self._form(), self.store)
        except LayerscopeError as error:
            self._say(in_words(error))
            return None

    def _say(self, text: str) -> None:
        self.query_one("#said", Static).update(Text(text))


def _field(name: str, label: str, value: str, known: list[str], hint: str) -> Iterator[Widget]:
    with Horizontal(classes="field"):
        yield Label(label)
        suggester = SuggestFromList(known, case_sensitive=False) if known else None
        yield Input(value, placeholder=hint, suggester=suggester, id=name)


def _choices(models: list[str], concepts: list[str]) -> Text:
    return Text(f"models: {', '.join(models)}\nconcepts: {', '.join(concepts)}\n→ takes the suggestion")


def _in_words(cost: SourceEstimate) -> str:
    into = (
        "\nInto shards: if it is stopped, the same form goes on from those that are saved" if cost["in_shards"] else ""
    )
    return (
        f"{cost['prompts']} prompts, {cost['tokens']:,} tokens, about {max(cost['seconds'], 0.1):.1f} s,"
        f" {cost['bytes'] / 1e6:.1f} MB{into}"
    )
