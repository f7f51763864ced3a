"""Several captures over one another, drawn in the room there is."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text
from textual.reactive import reactive
from textual.widget import Widget

from engine.plots.comparison_text import SEVERAL, SIGNS, overlay_as_columns
from engine.records.files import CaptureRecord
from tui.looks import looks_of, overlay_styles


class OverlayColumns(Widget):
    """Held-out d' of each capture over relative depth."""

    records: reactive[Sequence[CaptureRecord]] = reactive((), always_update=True)
    depth: reactive[float | None] = reactive(None)

    def render(self) -> Text:
        """A legend line for each capture, and the chart under them."""
        width, height = self.size
        if not self.records or width < 1 or height < 1:
            return Text("")
        styles, quiet = overlay_styles(self.app), looks_of(self.app).quiet
        names = [
            Text(f"{SIGNS[place]} {record['name']}", style=styles[place], no_wrap=True)
            for place, record in enumerate(self.records)
        ]
        names.append(Text(f"{SEVERAL} several", style=quiet, no_wrap=True))
        together = Text("  ").join(names)
        legend = [together] if together.cell_len <= width else names
        room = max(height - len(legend), 4)
        lines = overlay_as_columns(self.records, width, room, styles=styles, quiet=quiet, cursor=self.depth)
        return Text("\n").join([*legend, *lines])
