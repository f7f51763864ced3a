"""The form for a new capture: estimate the cost, then run it in the background."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

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
from engine.jobs import Job
from engine.models.registry import DEFAULT_MODEL, list_models
from engine.plots.findings import cost_in_words, neighbours_in_words
from engine.records.captures import CaptureEstimate
from tui.capturing import CaptureForm, CapturePlan, estimate_plan, plan_capture, run_plan
from tui.jobs import JobEnded, JobMoved
from tui.screens.screen import LayerscopeScreen, describe_step
from tui.widgets.words import Words


class CaptureScreen(LayerscopeScreen):
    """The capture form.

    Enter estimates the cost; a second Enter on the unchanged form runs the capture.

    Args:
        store: The folder to save to.
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
        """Yield the fields, the buttons, the message and the known models and concepts."""
        models = [listing.alias for listing in list_models()]
        concepts = [concept.name for concept in list_concepts(problems=[])]
        with VerticalScroll(id="form"):
            yield from _field("model", "Model", DEFAULT_MODEL, models, "alias, hub ID, folder or .gguf file")
            yield from _field(
                "concept", "Concept", "", concepts, "name, .toml file, or pairs or prompts in .jsonl, .csv, .txt"
            )
            yield from _field("layers", "Layers", "all", ["all", "recommended"], "all, recommended, 14,15 or 10-20")
            yield from _field(
                "positions", "Positions", DEFAULT_POSITIONS, ["last", "all", "mean"], "last, all, mean, -2 or 2:10"
            )
            yield from _field("samples", "Max. pairs", str(DEFAULT_SAMPLES), [], "maximum number of pairs (0: all)")
            yield from _field("name", "Save as", "", [], "default: model_concept")
            with Horizontal(id="buttons"):
                yield Button("Estimate", id="estimate")
                yield Button("Capture", id="run", variant="primary")
            yield Words(id="said")
            yield Words(_choices(models, concepts), classes="quiet", id="choices")

    def on_mount(self) -> None:
        """Focus the concept: the other fields have defaults."""
        super().on_mount()
        self.set_title("New capture", f"in {self.store}")
        self._say("Enter estimates the cost; Enter again starts the capture")
        self.query_one("#concept", Input).focus()

    @on(Input.Submitted)
    def action_go(self) -> None:
        """Estimate a new or changed form; run one that has been estimated."""
        if self._form() == self._estimated:
            self.run_capture()
        else:
            self.estimate()

    @on(Button.Pressed, "#estimate")
    def estimate(self) -> None:
        """Estimate the cost in the background."""
        plan = self._plan()
        if plan is None:
            return
        models = self.models
        self._asked = self._form()
        self._say(self.before_start)
        self._job = self.jobs.start(f"estimating {plan.paths.name}", lambda job: estimate_plan(plan, models, job), self)

    @on(Button.Pressed, "#run")
    def run_capture(self) -> None:
        """Run the capture in the background and return to the library."""
        plan = self._plan()
        if plan is None:
            return
        models = self.models
        self.jobs.start(f"capturing {plan.paths.name}", lambda job: run_plan(plan, models, job), self.app)
        self.action_back()

    def on_job_moved(self, message: JobMoved) -> None:
        """Show what the estimate is doing."""
        if message.job is self._job:
            self._say(describe_step(message.job))

    def on_job_ended(self, message: JobEnded) -> None:
        """Show the estimate, unless a newer one was requested."""
        job = message.job
        if job is not self._job:
            return
        if job.status == "done":
            self._estimated = self._asked
            self._say(f"{_described(job.result)}\nEnter starts the capture; change a field to estimate again")
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
            self._job = None  # its progress would replace the error
            self._say(error.said("app"))
            return None

    def _say(self, text: str) -> None:
        self.query_one("#said", Static).update(Text(text))


def _field(name: str, label: str, value: str, known: list[str], hint: str) -> Iterator[Widget]:
    with Horizontal(classes="field"):
        yield Label(label)
        suggester = SuggestFromList(known, case_sensitive=False) if known else None
        yield Input(value, placeholder=hint, suggester=suggester, id=name)


def _choices(models: list[str], concepts: list[str]) -> Text:
    return Text(f"models: {', '.join(models)}\nconcepts: {', '.join(concepts)}\n→ accepts a suggestion")


def _described(cost: CaptureEstimate) -> str:
    lines = [cost_in_words(cost), neighbours_in_words(cost)]
    if cost["in_shards"]:
        lines.append("Saved as shards: if interrupted, submit the same form to resume")
    return "\n".join(filter(None, lines))
