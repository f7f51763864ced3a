"""What is to be seen of a capture beside the list: its title, the layer chart, what was found."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Static

from engine.errors import LayerscopeError
from engine.plots.layers_chart import layers_chart
from engine.store.catalog import show_capture
from engine.store.summaries import CaptureSummary
from tui.remedies import in_words
from tui.widgets.layer_columns import LayerColumns


class CapturePreview(Vertical):
    """One capture, or words where there is none to draw."""

    def compose(self) -> ComposeResult:
        """Title, chart and sentences."""
        yield Static(id="about", markup=False)
        yield LayerColumns()
        yield Static(id="findings", markup=False)

    def say(self, text: str | Text) -> None:
        """Words instead of a capture."""
        self.set_class(True, "-words")
        self.query_one("#about", Static).update(text)

    def show(self, summary: CaptureSummary, store: Path) -> None:
        """Draw a capture from its record, or say why it cannot be used."""
        if summary.problem:
            self.say(Text(summary.complaint, style="bold"))
            return
        try:
            drawn = layers_chart(show_capture(summary.name, store=store))
        except LayerscopeError as error:  # changed since it was listed
            self.say(in_words(error))
            return
        self.set_class(False, "-words")
        self.query_one("#about", Static).update(Text.assemble((f"{drawn.title}  ", "bold"), drawn.subtitle))
        chart = self.query_one(LayerColumns)
        chart.ranked, chart.chosen = drawn.ranked, drawn.ranked[0]["layer"] if drawn.ranked else None
        sentences = [*drawn.findings, *(f"warning: {warning}" for warning in drawn.warnings)]
        self.query_one("#findings", Static).update(Text("\n".join(sentences)))
