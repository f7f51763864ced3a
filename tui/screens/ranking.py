"""One capture: its layers ranked, how sure that is, and why one is above another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from rich.text import Text
from textual import on
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.widget import Widget
from textual.widgets import Static, TabbedContent, TabPane

from engine.errors import LayerscopeError, RequestError
from engine.plots.classes_text import histograms_as_text, side_summary, wrong_pairs_as_text
from engine.plots.layers_chart import LayersChart, Looks, layers_chart
from engine.plots.words import describe_order, p_in_words
from engine.records.files import CaptureRecord
from engine.records.results import RankedLayer
from engine.store.catalog import show_capture
from tui.exporting import Export
from tui.looks import looks_of
from tui.remedies import in_words
from tui.screens.ranking_columns import LARGEST_FIRST, SORTED_BY, Line, layer_columns
from tui.screens.screen import LayerscopeScreen
from tui.widgets.layer_columns import LayerColumns
from tui.widgets.rows import RowsView

_TABS = ("layer", "chart", "pairs", "findings")


class RankingScreen(LayerscopeScreen):
    """The layers of a capture.

    Args:
        store: The folder.
        name: The capture.
        layer: The layer to look at first; the one that leads unless given.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "mark", "Why above…"),
        Binding("s", "sort", "Sort"),
        Binding("S", "reverse", "Reverse the order", show=False),
        Binding("r", "by_rank", "By rank"),
        Binding("1", "tab('layer')", "Layer", show=False),
        Binding("2", "tab('chart')", "Chart", show=False),
        Binding("3", "tab('pairs')", "Pairs that point the wrong way", show=False),
        Binding("4", "tab('findings')", "Findings, warnings and confounds", show=False),
        Binding("tab", "next_tab", "Next pane"),
        Binding("t", "tokens", "Tokens"),
        Binding("q", "back", "Back", show=False),
    ]

    def __init__(self, store: Path, name: str, layer: int | None = None) -> None:
        super().__init__()
        self.store, self.capture = store, name
        self._first = layer
        self._record: CaptureRecord | None = None
        self._sorted = ("layer", False)
        self._marked: int | None = None

    def compose_content(self) -> Iterator[Widget]:
        """The table, and what is known of the layer under the cursor."""
        with Container(id="body"):
            yield RowsView[Line]((), key=lambda line: line[0]["layer"], id="layers")
            with TabbedContent(initial="layer", id="detail"):
                for tab, title in zip(_TABS, ("Layer", "Chart", "Pairs", "Findings"), strict=True):
                    with TabPane(title, id=tab):
                        yield (
                            LayerColumns() if tab == "chart" else VerticalScroll(Static(id=f"{tab}-text", markup=False))
                        )

    def on_mount(self) -> None:
        """Read the record; no tensors are needed."""
        super().on_mount()
        try:
            self._record = show_capture(self.capture, store=self.store)
        except LayerscopeError as error:
            self.entitle(self.capture, "cannot be used")
            self.query_one("#layer-text", Static).update(in_words(error))
            return
        chart = layers_chart(self._record)
        self.entitle(chart.title, chart.subtitle)
        table = self.query_one(RowsView)
        table.columns = list(layer_columns(self._record, self._is_marked, self._looks))
        self.query_one(LayerColumns).ranked = chart.ranked
        self.query_one("#findings-text", Static).update(_findings(chart, self._record))
        self._show()
        leader = chart.ranked[0]["layer"] if chart.ranked else self._record["captured_layers"][0]
        known = self._first in self._record["captured_layers"]
        table.move_to(self._first if known else leader)
        if self._first is not None and not known:
            self.notify(f"layer {self._first} was not captured", severity="warning")
        table.focus()

    @on(RowsView.Moved)
    def take_cursor(self) -> None:
        """Show what is known of the layer under the cursor."""
        self._detail()

    @on(RowsView.SortAsked)
    def take_sort(self, message: RowsView.SortAsked) -> None:
        """Sort by a header; a second click turns the order round."""
        key, descending = self._sorted
        self._sort_by(message.key, not descending if message.key == key else message.key in LARGEST_FIRST)

    def on_resize(self) -> None:
        """Histograms are as wide as there is room."""
        if self._record is not None:
            self.call_after_refresh(self._detail)

    def action_mark(self) -> None:
        """Hold this layer against the others: move, and read why it is above or below them."""
        layer = self._layer()
        self._marked = None if self._marked == layer else layer
        self.query_one(RowsView).refresh()
        if self._marked is not None:
            self.action_tab("layer")
        self._detail()

    def action_sort(self) -> None:
        """Sort by the next column."""
        keys = [column.key for column in self.query_one(RowsView).columns if column.key]
        key = keys[(keys.index(self._sorted[0]) + 1) % len(keys)]
        self._sort_by(key, key in LARGEST_FIRST)

    def action_reverse(self) -> None:
        """Turn the order round."""
        self._sort_by(self._sorted[0], not self._sorted[1])

    def action_by_rank(self) -> None:
        """By rank, or back by layer."""
        self._sort_by("layer" if self._sorted[0] == "rank" else "rank", False)

    def action_tab(self, tab: str) -> None:
        """Show a pane."""
        self.query_one(TabbedContent).active = tab

    def action_next_tab(self) -> None:
        """Show the next pane."""
        active = self.query_one(TabbedContent).active
        self.action_tab(_TABS[(_TABS.index(active) + 1) % len(_TABS)])

    def action_tokens(self) -> None:
        """Read a text along this capture's direction."""
        from tui.screens.tokens import TokensScreen

        if self._record is not None and self._record["kind"] == "contrast":
            self.app.push_screen(TokensScreen(self.store, self.capture, self._layer()))
        else:
            self.notify("a direction needs a capture of pairs", severity="warning")

    def exported(self) -> Export:
        """The table as it is ordered, or the figure."""
        if self._record is None:
            raise RequestError("there is no record to export")
        record, chart = self._record, layers_chart(self._record)

        def draw() -> Any:  # noqa: ANN401 - a matplotlib figure, which is not imported here
            from engine.plots.layers_figure import draw_layers

            return draw_layers(chart)

        rows = [
            {**row, **{key: value for key, value in (ranked or {}).items() if key != "by_factor"}}
            for row, ranked in self.query_one(RowsView).rows
        ]
        return Export(record["name"], rows, draw, f"{chart.title}: {chart.subtitle}")

    def copied(self) -> str:
        """What is said of the layer under the cursor."""
        layer = self._layer()
        if self._record is None or layer is None:
            return ""
        if self._marked not in (None, layer) and self._record["ranking"]:
            return " ".join(describe_order(self._record, layer, self._marked or 0))
        line = self.query_one(RowsView).row
        ranked: RankedLayer | None = line[1] if line else None
        if ranked is None:
            return f"{self.capture} layer {layer}"
        return (
            f"{self.capture} layer {layer}: rank {ranked['rank']}, d' {ranked['d_prime']:.2f}"
            f" ({ranked['low']:.2f} to {ranked['high']:.2f}), p {p_in_words(ranked['p_value'])}"
        )

    def _layer(self) -> int | None:
        line = self.query_one(RowsView).row
        return line[0]["layer"] if line else None

    def _is_marked(self, layer: int) -> bool:
        return layer == self._marked

    def _looks(self) -> Looks:
        return looks_of(self.app)

    def _sort_by(self, key: str, descending: bool) -> None:
        self._sorted = (key, descending)
        self._show()

    def _show(self) -> None:
        if self._record is None:
            return
        ranking = self._record["ranking"]
        ranked = {row["layer"]: row for row in ranking["layers"]} if ranking else {}
        lines: list[Line] = [(row, ranked.get(row["layer"])) for row in self._record["statistics"]]
        key, descending = self._sorted
        value = SORTED_BY[key]
        lines.sort(key=lambda line: -value(line) if descending else value(line))
        self.query_one(RowsView).show_rows(lines, sorted_by=self._sorted)

    def _detail(self) -> None:
        record, layer = self._record, self._layer()
        if record is None or layer is None:
            return
        self.query_one(LayerColumns).chosen = layer
        looks, width = looks_of(self.app), max(self.query_one("#layer-text", Static).size.width, 20)
        lines: list[Text] = []
        if record["ranking"] and self._marked not in (None, layer):
            above = describe_order(record, layer, self._marked or 0)
            lines += [Text(f"Layer {self._marked} or layer {layer}?", style="bold"), *map(Text, above), Text()]
        summary = side_summary(record, layer)
        if summary is None:
            reason = record["unranked"] or "the prompts do not differ here"
            lines.append(
                Text(f"Layer {layer}: nothing to show of two sides ({reason}).")
                if record["kind"] == "contrast"
                else Text(f"Layer {layer}: a capture of prompts has no two sides.")
            )
        else:
            lines.append(Text(f"Where left-out prompts lie at layer {layer}", style="bold"))
            lines += histograms_as_text(summary, width, looks=looks)
            lines += wrong_pairs_as_text(record, summary, most=5, looks=looks)
            self.query_one("#pairs-text", Static).update(
                Text("\n").join(wrong_pairs_as_text(record, summary, prompts=True, looks=looks))
            )
        self.query_one("#layer-text", Static).update(Text("\n").join(lines))


def _findings(chart: LayersChart, record: CaptureRecord) -> Text:
    checks = record["confounds"]["checks"] if record["confounds"] else []
    return Text("\n").join(
        [
            *(Text(sentence) for sentence in chart.findings),
            *(Text(f"warning: {warning}", style="bold") for warning in chart.warnings),
            *([Text("\nWhat else could tell the sides apart", style="bold")] if checks else []),
            *(Text(f"{check['what']}: held-out AUROC {check['auroc']:.2f}; {check['detail']}") for check in checks),
        ]
    )
