"""The column chart of a ranking, drawn in the room there is."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text
from textual.reactive import reactive
from textual.widget import Widget

from engine.plots.layers_chart import layers_as_columns
from engine.records.results import RankedLayer
from tui.looks import looks_of

LEGENDS = (
    "● d', tied with the best  ○ d', behind it  │ 95% interval  ░ 95% of shuffled labels",
    "● tied  ○ behind  │ 95%  ░ shuffled",
)


class LayerColumns(Widget):
    """Held-out d' over the layers, with intervals, shuffled labels and ties."""

    ranked: reactive[Sequence[RankedLayer]] = reactive((), always_update=True)
    chosen: reactive[int | None] = reactive(None)

    def render(self) -> Text:
        """The chart, and what its signs mean where there is room for that."""
        width, height = self.size
        if not self.ranked or width < 1 or height < 1:
            return Text("")
        looks = looks_of(self.app)
        legend = height > 8
        lines = layers_as_columns(self.ranked, width, height - legend, cursor=self.chosen, looks=looks)
        if legend:
            fitting = next((text for text in LEGENDS if len(text) <= width), "")
            lines.append(Text(fitting, style=looks.quiet, no_wrap=True))
        return Text("\n").join(lines)
