"""Two to four captures overlaid, with the cosines between their directions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from rich.text import Text
from textual import on
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.widget import Widget
from textual.widgets import Static

from engine.errors import LayerscopeError, RequestError
from engine.jobs import Job
from engine.plots.comparison_text import SIGNS
from engine.plots.findings import score_in_words
from engine.records.files import CaptureRecord
from engine.records.results import ComparedLayer, Comparison
from engine.store.catalog import show_capture
from tui.directions import compare_all
from tui.exporting import Export
from tui.jobs import JobEnded, JobMoved
from tui.screens.screen import LayerscopeScreen, describe_step
from tui.widgets.charts import OverlayColumns
from tui.widgets.rows import Column, RowsView
from tui.widgets.words import Words

Pair = tuple[int, int]
Line = tuple[int, float]
"""Layer number and relative depth: models of different depths have separate lines."""


class CompareScreen(LayerscopeScreen):
    """A comparison of captures.

    Args:
        store: The folder.
        names: Two to four captures.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("q", "back", "Back", show=False)]

    def __init__(self, store: Path, names: Sequence[str]) -> None:
        super().__init__()
        self.store, self._names = store, list(names)
        self._records: list[CaptureRecord] = []
        self._compared: dict[Pair, Comparison] = {}
        self._job: Job | None = None

    def compose_content(self) -> Iterator[Widget]:
        """Yield the table of layers, the chart of scores and the message."""
        with Container(id="body"):
            yield RowsView[Line]((), key=lambda line: line, id="layers")
            yield OverlayColumns(id="detail")
        yield Words(id="said")

    def on_mount(self) -> None:
        """Draw the scores from the records; a job computes the cosines from the tensors."""
        super().on_mount()
        try:
            self._records = [show_capture(name, store=self.store) for name in self._names]
        except LayerscopeError as error:
            self._say(error.said("app"))
            return
        self.set_title(self._called(), "held-out d' by relative depth")
        self.query_one(OverlayColumns).records = self._records
        table = self.query_one(RowsView)
        table.columns = list(_columns(self._records, self._compared))
        table.show_rows(_lines(self._records))
        table.focus()
        records, store = self._records, self.store
        self._say(self.before_start)
        self._job = self.jobs.start("comparing directions", lambda job: compare_all(records, store, job), self)

    @on(RowsView.Moved)
    def show_selected(self, message: RowsView.Moved) -> None:
        """Highlight the selected depth in the chart and describe the layer."""
        self.query_one(OverlayColumns).depth = message.row[1] if isinstance(message.row, tuple) else None
        self._describe()

    def on_job_moved(self, message: JobMoved) -> None:
        """Show how many cosines are computed."""
        if message.job is self._job:
            self._say(describe_step(message.job))

    def on_job_ended(self, message: JobEnded) -> None:
        """Show the cosines or the error."""
        job = message.job
        if job is not self._job:
            return
        if job.status != "done":
            self._say(job.error or "cancelled; the cosines were not computed")
            return
        self._compared = job.result
        table = self.query_one(RowsView)
        table.columns = list(_columns(self._records, self._compared))
        table.refresh()
        self._describe()

    def action_back(self) -> None:
        """Cancel the job and return to the previous screen."""
        if self._job is not None:
            self._job.cancel()
        super().action_back()

    def make_export(self) -> Export:
        """Return the table, and the figure if there are two captures."""
        rows = self.query_one(RowsView).rows
        if not rows:
            raise RequestError("there is nothing to export")
        table = [
            {"layer": layer, "depth": round(depth, 4), **self._scores(layer, depth), **self._cosines(layer)}
            for layer, depth in rows
        ]
        only = self._compared.get((0, 1)) if len(self._records) == 2 else None

        def draw(comparison: Comparison) -> Any:  # noqa: ANN401 - a matplotlib figure; matplotlib is imported only to draw
            from engine.plots.comparison_figure import draw_comparison

            return draw_comparison(comparison)

        title = self._called()
        return Export("comparison", table, partial(draw, only) if only else None, title)

    def _called(self) -> str:
        *first, last = self._names
        return f"{', '.join(first)} and {last}"

    def text_to_copy(self) -> str:
        """Return the description of the selected layer."""
        line = self.query_one(RowsView).row
        return self._in_words(line[0]) if line else ""

    def _scores(self, layer: int, depth: float) -> dict[str, float | None]:
        scores = [_score(record, layer, depth) for record in self._records]
        return {f"d_prime {name}": score for name, score in zip(self._names, scores, strict=True)}

    def _cosines(self, layer: int) -> dict[str, float | None]:
        cosines = {}
        for pair in self._compared:
            row = _at(self._compared, pair, layer)
            cosines[f"cosine {self._names[pair[0]]} {self._names[pair[1]]}"] = row["cosine"] if row else None
        return cosines

    def _describe(self) -> None:
        line = self.query_one(RowsView).row
        if self._compared and line:
            warnings = {warning for comparison in self._compared.values() for warning in comparison["warnings"]}
            self._say("\n".join([self._in_words(line[0]), *(f"warning: {warning}" for warning in sorted(warnings))]))

    def _in_words(self, layer: int) -> str:
        sentences = []
        for pair in self._compared:
            row = _at(self._compared, pair, layer)
            if row is not None:
                beyond = "beyond" if abs(row["cosine"]) > row["chance"] else "within"
                sentences.append(
                    f"{SIGNS[pair[0]]}{SIGNS[pair[1]]} layer {layer}: cosine {row['cosine']:+.2f}, {beyond} the"
                    f" range of random directions (±{row['chance']:.2f}); split-half ceiling {row['ceiling']:.2f}"
                )
        return "\n".join(sentences) or "the models differ: only the depths of the peaks can be compared"

    def _say(self, text: str) -> None:
        self.query_one("#said", Static).update(Text(text))


def _lines(records: Sequence[CaptureRecord]) -> list[Line]:
    lines = {(layer, (layer + 1) / record["num_layers"]) for record in records for layer in record["captured_layers"]}
    return sorted(lines, key=lambda line: (line[1], line[0]))


def _columns(records: Sequence[CaptureRecord], compared: Mapping[Pair, Comparison]) -> Iterator[Column[Line]]:
    yield Column("", "layer", 6, lambda line, _width: str(line[0]), right=True)
    yield Column("", "depth", 6, lambda line, _width: f"{line[1]:.0%}", right=True, order=9)
    for place, record in enumerate(records):
        yield Column("", f"{SIGNS[place]} d'", 7, partial(_score_cell, record), right=True, order=1)
    for pair, comparison in compared.items():
        if comparison["directions"]:
            title = f"cos {SIGNS[pair[0]]}{SIGNS[pair[1]]}"
            yield Column("", title, 8, partial(_cosine_cell, compared, pair), right=True, order=2)
    yield Column("", "", 0, lambda _line, _width: "", grows=True)


def _score(record: CaptureRecord, layer: int, depth: float) -> float | None:
    if record["ranking"] is None or abs((layer + 1) / record["num_layers"] - depth) > 1e-9:
        return None
    return next((row["d_prime"] for row in record["ranking"]["layers"] if row["layer"] == layer), None)


def _score_cell(record: CaptureRecord, line: Line, _width: int) -> str:
    score = _score(record, *line)
    return "" if score is None else score_in_words(score)


def _cosine_cell(compared: Mapping[Pair, Comparison], pair: Pair, line: Line, _width: int) -> Text:
    row = _at(compared, pair, line[0])
    if row is None:
        return Text()
    return Text(f"{row['cosine']:+.2f}", style="bold" if abs(row["cosine"]) > row["chance"] else "")


def _at(compared: Mapping[Pair, Comparison], pair: Pair, layer: int) -> ComparedLayer | None:
    return next((row for row in compared[pair]["directions"] if row["layer"] == layer), None)
