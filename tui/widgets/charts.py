"""Charts that fit their widget: a ranking, an overlay, and a capture's preview."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.reactive import reactive
from textual.widget import Widget
from textual.widgets import Static

from engine.errors import LayerscopeError, visible
from engine.plots.comparison_text import SEVERAL, SIGNS, overlay_as_columns
from engine.plots.layers_chart import layers_as_columns, layers_chart
from engine.records.files import CaptureRecord
from engine.records.results import RankedLayer
from engine.store.catalog import show_capture
from engine.store.summaries import CaptureSummary
from tui.looks import looks_of, overlay_styles
from tui.widgets.words import Words

_LEGENDS = (
    "● tied with the best  ○ behind it  │ 95% interval of d'  ░ permutation null (95%)",
    "● tied  ○ behind  │ 95%  ░ null",
)


class LayerColumns(Widget):
    """Column chart of held-out d' by layer, with intervals, permutation null and ties."""

    ranked: reactive[Sequence[RankedLayer]] = reactive((), always_update=True)
    chosen: reactive[int | None] = reactive(None)

    def render(self) -> Text:
        """Draw the chart, with a legend if there is room."""
        width, height = self.size
        if not self.ranked or width < 1 or height < 1:
            return Text("")
        looks = looks_of(self.app)
        legend = height > 8
        lines = layers_as_columns(self.ranked, width, height - legend, cursor=self.chosen, looks=looks)
        if legend:
            fitting = next((text for text in _LEGENDS if len(text) <= width), "")
            lines.append(Text(fitting, style=looks.quiet, no_wrap=True))
        return Text("\n").join(lines)


class OverlayColumns(Widget):
    """Column chart of several captures' held-out d' by relative depth."""

    records: reactive[Sequence[CaptureRecord]] = reactive((), always_update=True)
    depth: reactive[float | None] = reactive(None)

    def render(self) -> Text:
        """Draw a legend, on one line if it fits, and the chart."""
        width, height = self.size
        if not self.records or width < 1 or height < 1:
            return Text("")
        styles, quiet = overlay_styles(self.app), looks_of(self.app).quiet
        entries = [
            Text(f"{SIGNS[place]} {visible(record['name'])}", style=styles[place], no_wrap=True)
            for place, record in enumerate(self.records)
        ]
        entries.append(Text(f"{SEVERAL} several", style=quiet, no_wrap=True))
        one_line = Text("  ").join(entries)
        legend = [one_line] if one_line.cell_len <= width else entries
        room = max(height - len(legend), 4)
        lines = overlay_as_columns(self.records, width, room, styles=styles, quiet=quiet, cursor=self.depth)
        return Text("\n").join([*legend, *lines])


class CapturePreview(Vertical):
    """A capture's title, layer chart and findings, or a text without a capture."""

    def compose(self) -> ComposeResult:
        """Yield title, chart and findings."""
        yield Words(id="about")
        yield LayerColumns()
        yield Words(id="findings")

    def show_text(self, text: str | Text) -> None:
        """Show a text instead of a capture."""
        self.set_class(True, "-words")
        self.query_one("#about", Static).update(text)

    def show_capture(self, summary: CaptureSummary, store: Path) -> None:
        """Draw a capture from its record, or show why it cannot be used."""
        if summary.problem:
            self.show_text(Text(summary.complaint, style="bold"))
            return
        try:
            chart = layers_chart(show_capture(summary.name, store=store))
        except LayerscopeError as error:  # the files changed after they were listed
            self.show_text(error.said("app"))
            return
        self.set_class(False, "-words")
        self.query_one("#about", Static).update(Text.assemble((f"{chart.title}  ", "bold"), chart.subtitle))
        columns = self.query_one(LayerColumns)
        columns.ranked, columns.chosen = chart.ranked, chart.ranked[0]["layer"] if chart.ranked else None
        sentences = [*chart.findings, *(f"warning: {warning}" for warning in chart.warnings)]
        self.query_one("#findings", Static).update(Text("\n".join(sentences)))
