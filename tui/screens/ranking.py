"""The ranking of one capture, and why one layer ranks above another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from rich.text import Text
from textual import on
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.widget import Widget
from textual.widgets import Static, TabbedContent, TabPane

from engine.errors import LayerscopeError, RequestError
from engine.plots.classes_text import histograms_as_text, side_summary, wrong_pairs_as_text
from engine.plots.findings import norm_in_words, p_in_words, score_in_words
from engine.plots.layer_order import describe_order
from engine.plots.layers_chart import LayersChart, Looks, Scale, layers_chart, whiskers
from engine.records.causal import CausalLayer, ablation_works, works
from engine.records.files import CaptureRecord
from engine.records.results import LayerRow, RankedLayer, may_be_best
from engine.store.catalog import show_capture
from tui.exporting import Export
from tui.looks import looks_of
from tui.screens.screen import LayerscopeScreen
from tui.widgets.charts import LayerColumns
from tui.widgets.rows import MARK, Column, RowsView
from tui.widgets.words import Words


class Line(NamedTuple):
    """What is known of a layer.

    Attributes:
        row: Its statistics.
        ranked: Its rank, if the capture has a ranking.
        causal: What steering there does, if it was measured.
    """

    row: LayerRow
    ranked: RankedLayer | None
    causal: CausalLayer | None


_TABS = ("layer", "chart", "pairs", "findings")
_LARGEST_FIRST = frozenset({"d_prime", "auroc", "pair_cosine", "relative_norm", "diff_norm", "norm", "std", "effect"})
_WORKS, _ABLATION_WORKS = "*", "†"


class RankingScreen(LayerscopeScreen):
    """The layers of a capture.

    Args:
        store: The folder.
        name: The capture.
        layer: The layer to select first; the leading one if None.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "mark", "Compare", tooltip="Mark a layer to compare the others with"),
        Binding("s", "sort", "Sort", tooltip="Sort by the next column"),
        Binding("S", "reverse", "Reverse order", show=False),
        Binding("r", "by_rank", "Rank", tooltip="Sort by rank or by layer"),
        Binding("1", "tab('layer')", "Layer", show=False),
        Binding("2", "tab('chart')", "Chart", show=False),
        Binding("3", "tab('pairs')", "Misordered pairs", show=False),
        Binding("4", "tab('findings')", "Findings, warnings and baselines", show=False),
        Binding("tab", "next_tab", "Pane", tooltip="Next pane"),
        Binding("t", "tokens", "Tokens", tooltip="Project the tokens of a text on the direction"),
        Binding("w", "steer", "Steer", tooltip="Let the model answer with and without the direction"),
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
        """Yield the table and the panes about the selected layer."""
        with Container(id="body"):
            yield RowsView[Line]((), key=lambda line: line.row["layer"], id="layers")
            with TabbedContent(initial="layer", id="detail"):
                for tab in _TABS:
                    with TabPane(tab.capitalize(), id=tab):
                        yield (LayerColumns() if tab == "chart" else VerticalScroll(Words(id=f"{tab}-text")))

    def on_mount(self) -> None:
        """Read the record; tensors are not needed."""
        super().on_mount()
        try:
            self._record = show_capture(self.capture, store=self.store)
        except LayerscopeError as error:
            self.set_title(self.capture, "cannot be read")
            self.query_one("#layer-text", Static).update(error.said("app"))
            return
        chart = layers_chart(self._record)
        self.set_title(chart.title, chart.subtitle)
        table = self.query_one(RowsView)
        table.columns = list(_columns(self._record, lambda layer: layer == self._marked, lambda: looks_of(self.app)))
        self.query_one(LayerColumns).ranked = chart.ranked
        self.query_one("#findings-text", Static).update(_findings(chart, self._record))
        self._show()
        leader = chart.ranked[0]["layer"] if chart.ranked else self._record["captured_layers"][0]
        captured = self._first in self._record["captured_layers"]
        table.move_to(self._first if captured else leader)
        if self._first is not None and not captured:
            self.notify(f"layer {self._first} was not captured", severity="warning")
        table.focus()

    @on(RowsView.Moved)
    def show_selected(self) -> None:
        """Describe the selected layer."""
        self._show_detail()

    @on(RowsView.SortAsked)
    def sort_by_header(self, message: RowsView.SortAsked) -> None:
        """Sort by the clicked header; a second click reverses the order."""
        key, descending = self._sorted
        self._sort_by(message.key, not descending if message.key == key else message.key in _LARGEST_FIRST)

    def on_resize(self) -> None:
        """Redraw the histograms, which fill the width of the pane."""
        if self._record is not None:
            self.call_after_refresh(self._show_detail)

    def action_mark(self) -> None:
        """Mark the selected layer; the pane compares it with each layer selected next."""
        layer = self._selected()
        self._marked = None if self._marked == layer else layer
        self.query_one(RowsView).refresh()
        if self._marked is not None:
            self.action_tab("layer")
        self._show_detail()

    def action_sort(self) -> None:
        """Sort by the next column."""
        keys = [column.key for column in self.query_one(RowsView).columns if column.key]
        key = keys[(keys.index(self._sorted[0]) + 1) % len(keys)]
        self._sort_by(key, key in _LARGEST_FIRST)

    def action_reverse(self) -> None:
        """Reverse the order."""
        self._sort_by(self._sorted[0], not self._sorted[1])

    def action_by_rank(self) -> None:
        """Switch between order by rank and order by layer."""
        self._sort_by("layer" if self._sorted[0] == "rank" else "rank", False)

    def action_tab(self, tab: str) -> None:
        """Show a pane."""
        self.query_one(TabbedContent).active = tab

    def action_next_tab(self) -> None:
        """Show the next pane."""
        active = self.query_one(TabbedContent).active
        self.action_tab(_TABS[(_TABS.index(active) + 1) % len(_TABS)])

    def action_tokens(self) -> None:
        """Read a text along the capture's direction."""
        from tui.screens.tokens import TokensScreen

        if self._record is not None and self._record["kind"] == "contrast":
            self.app.push_screen(TokensScreen(self.store, self.capture, self._selected()))
        else:
            self._need_pairs()

    def action_steer(self) -> None:
        """Steer the model with the capture's direction at the selected layer."""
        from tui.screens.steering import SteeringScreen

        layer = self._selected()
        if self._record is not None and self._record["kind"] == "contrast" and layer is not None:
            self.app.push_screen(SteeringScreen(self.store, self.capture, layer))
        else:
            self._need_pairs()

    def _need_pairs(self) -> None:
        self.notify("this capture has no pairs: a direction needs two classes", severity="warning")

    def make_export(self) -> Export:
        """Return the table in its current order, and the figure."""
        if self._record is None:
            raise RequestError("there is no record to export")
        record, chart = self._record, layers_chart(self._record)

        def draw() -> Any:  # noqa: ANN401 - a matplotlib figure; matplotlib is imported only to draw
            from engine.plots.layers_figure import draw_layers

            return draw_layers(chart)

        rows = [
            {
                **line.row,
                **{key: value for key, value in (line.ranked or {}).items() if key != "by_factor"},
                **(_exported_effect(line.causal) if "causal" in record else {}),
            }
            for line in self.query_one(RowsView).rows
        ]
        return Export(record["name"], rows, draw, f"{chart.title}: {chart.subtitle}")

    def text_to_copy(self) -> str:
        """Return the selected layer's scores, or its comparison with the marked one."""
        line = self.query_one(RowsView).row
        if self._record is None or line is None:
            return ""
        layer, ranked = line.row["layer"], line.ranked
        if self._record["ranking"] and self._marked not in (None, layer):
            return " ".join(describe_order(self._record, layer, self._marked or 0))
        facts = []
        if ranked is not None:
            facts.append(f"rank {ranked['rank']}, d' {ranked['d_prime']:.2f} ({ranked['low']:.2f} to")
            facts[-1] += f" {ranked['high']:.2f}), p {p_in_words(ranked['p_value'])}"
        if line.causal is not None:
            facts.append(f"steering effect {_effect(line.causal)} ({_effect_interval(line.causal)})")
        return f"{self.capture} layer {layer}{': ' if facts else ''}{'; '.join(facts)}"

    def _selected(self) -> int | None:
        line = self.query_one(RowsView).row
        return line.row["layer"] if line else None

    def _sort_by(self, key: str, descending: bool) -> None:
        self._sorted = (key, descending)
        self._show()

    def _show(self) -> None:
        if self._record is None:
            return
        ranking = self._record["ranking"]
        ranked = {row["layer"]: row for row in ranking["layers"]} if ranking else {}
        causal = _causal(self._record)
        lines = [Line(row, ranked.get(row["layer"]), causal.get(row["layer"])) for row in self._record["statistics"]]
        key, descending = self._sorted
        lines.sort(key=lambda line: -_value(key, line) if descending else _value(key, line))
        self.query_one(RowsView).show_rows(lines, sorted_by=self._sorted)

    def _show_detail(self) -> None:
        record, layer = self._record, self._selected()
        if record is None or layer is None:
            return
        self.query_one(LayerColumns).chosen = layer
        looks, width = looks_of(self.app), max(self.query_one("#layer-text", Static).size.width, 20)
        lines: list[Text] = []
        if record["ranking"] and self._marked not in (None, layer):
            reasons = describe_order(record, layer, self._marked or 0)
            lines += [Text(f"Layer {self._marked} vs. layer {layer}", style="bold"), *map(Text, reasons), Text()]
        lines += _describe_effect(_causal(record).get(layer))
        summary = side_summary(record, layer)
        if summary is not None:
            lines.append(Text(f"Held-out projections at layer {layer}", style="bold"))
            lines += histograms_as_text(summary, width, looks=looks)
            lines += wrong_pairs_as_text(record, summary, most=5, looks=looks)
            self.query_one("#pairs-text", Static).update(
                Text("\n").join(wrong_pairs_as_text(record, summary, prompts=True, looks=looks))
            )
        elif record["kind"] == "contrast":
            reason = record["unranked"] or "the prompts do not differ here"
            lines.append(Text(f"Layer {layer}: no held-out projections ({reason})."))
        else:
            lines.append(Text(f"Layer {layer}: a capture of prompts has no classes to compare."))
        self.query_one("#layer-text", Static).update(Text("\n").join(lines))


def _columns(
    record: CaptureRecord, is_marked: Callable[[int], bool], looks: Callable[[], Looks]
) -> Iterator[Column[Line]]:
    """Yield the columns; `looks` is called for every draw, as the theme may change."""
    yield Column("", "", 1, lambda line, _width: MARK if is_marked(line.row["layer"]) else "")
    yield Column("layer", "layer", 6, lambda line, _width: str(line.row["layer"]), right=True)
    if record["kind"] != "contrast":
        for key in ("mean", "std", "norm"):
            yield Column(key, key, 12, partial(_number, key), right=True)
        return
    if record["ranking"]:
        yield from _ranked_columns(record["ranking"]["layers"], looks)
    if "causal" in record:
        yield from _causal_columns()
    for key, title, width, order in (
        ("pair_cosine", "pair cosine", 11, 6),
        ("relative_norm", "rel. norm", 9, 7),
        ("cosine_sim", "cosine", 8, 8),
        ("diff_norm", "raw norm", 9, 5),
    ):
        yield Column(key, title, width, partial(_number, key), right=True, order=order)


def _ranked_columns(layers: Sequence[RankedLayer], looks: Callable[[], Looks]) -> Iterator[Column[Line]]:
    def cell(write: Callable[[RankedLayer], str]) -> Callable[[Line, int], str]:
        return lambda line, _width: write(line.ranked) if line.ranked else ""

    def bar(line: Line, width: int) -> Text:
        return whiskers(line.ranked, Scale.of(layers, width), looks()) if line.ranked else Text()

    yield Column("rank", "rank", 5, cell(lambda row: f"{row['rank']}{'=' if may_be_best(row) else ' '}"), right=True)
    yield Column(
        "rank_high", "95% rank", 8, cell(lambda row: f"{row['rank_low']}-{row['rank_high']}"), right=True, order=3
    )
    yield Column("d_prime", "d'", 6, cell(lambda row: score_in_words(row["d_prime"])), right=True)
    yield Column("", "95% interval", 14, cell(_interval), right=True, order=2)
    yield Column("", "●━ 95%  ░ null", 16, bar, grows=True, order=1)
    yield Column("p_value", "p", 6, cell(lambda row: p_in_words(row["p_value"])), right=True, order=1)
    yield Column("auroc", "AUROC", 6, cell(lambda row: f"{row['auroc']:.3f}"), right=True, order=2)
    yield Column("wrong_way", "misordered", 10, cell(lambda row: f"{row['wrong_way']:.0%}"), right=True, order=4)


def _causal_columns() -> Iterator[Column[Line]]:
    def marked(row: CausalLayer) -> str:
        marks = (_WORKS if works(row) else "") + (_ABLATION_WORKS if ablation_works(row) else "")
        return f"{_effect(row)}{marks:<2}"

    def cell(write: Callable[[CausalLayer], str]) -> Callable[[Line, int], str]:
        return lambda line, _width: write(line.causal) if line.causal else ""

    yield Column("effect", "effect", 8, cell(marked), right=True)
    yield Column("", "effect 95%", 16, cell(_effect_interval), right=True, order=2)


def _causal(record: CaptureRecord) -> dict[int, CausalLayer]:
    return {row["layer"]: row for row in record["causal"]["layers"]} if "causal" in record else {}


def _effect(row: CausalLayer) -> str:
    return f"{row['effect']:+.3f}"


def _effect_interval(row: CausalLayer) -> str:
    return f"{row['low']:+.3f} to {row['high']:+.3f}"


def _describe_effect(row: CausalLayer | None) -> Iterator[Text]:
    """Say what steering at a layer does, with the meaning of the marks."""
    if row is None:
        return
    p_value = p_in_words(row["p_value"])
    said = f"Steering here: effect {_effect(row)} nats per token ({_effect_interval(row)}), p {p_value}"
    said += f": it works ({_WORKS})." if works(row) else "."
    if "ablation" in row:
        said += f" Ablation removes {row['ablation']:.0%} of the personas' difference"
        said += f": it works ({_ABLATION_WORKS})." if ablation_works(row) else "."
    yield Text(said)


def _exported_effect(row: CausalLayer | None) -> dict[str, float | None]:
    """Effect columns of an exported row; empty where nothing was measured."""
    keys = {"effect": "effect", "low": "effect_low", "high": "effect_high", "p_value": "effect_p"}
    return {name: row[key] if row else None for key, name in keys.items()}  # type: ignore[literal-required]  # known keys


def _value(key: str, line: Line) -> float:
    """Return what a column sorts by; a missing value counts as 0, a missing effect as the lowest."""
    if key == "effect":
        return line.causal["effect"] if line.causal else -math.inf
    value = {**(line.ranked or {}), **line.row}.get(key)
    return value if isinstance(value, int | float) else 0.0


def _interval(row: RankedLayer) -> str:
    return f"{score_in_words(row['low'])} to {score_in_words(row['high'])}"


def _number(key: str, line: Line, _width: int) -> str:
    value = dict(line.row)[key]
    if not isinstance(value, int | float):
        return ""
    return norm_in_words(value) if key in {"diff_norm", "norm", "std"} else f"{value:.4f}"


def _findings(chart: LayersChart, record: CaptureRecord) -> Text:
    checks = record["confounds"]["checks"] if record["confounds"] else []
    return Text("\n").join(
        [
            *(Text(sentence) for sentence in chart.findings),
            *(Text(f"warning: {warning}", style="bold") for warning in chart.warnings),
            *([Text("\nBaselines without the model", style="bold")] if checks else []),
            *(Text(f"{check['what']}: held-out AUROC {check['auroc']:.2f}; {check['detail']}") for check in checks),
        ]
    )
