"""What to draw of a capture, as data. Knows records; does not know how anything is drawn, and imports no torch."""

from dataclasses import dataclass

from engine.records import CaptureRecord, LayerRow

CAVEAT = (
    "Relative norm is the distance between the two sides over the size of the states. It describes these prompts; "
    "it does not say whether the difference holds on others. The raw difference norm grows with depth whatever "
    "the concept, and a cosine near 1 is normal."
)


@dataclass(frozen=True)
class LayerChart:
    """The statistics of a capture, layer by layer.

    Attributes:
        title: What was captured.
        subtitle: Of which model, from how many prompts, at which positions.
        rows: One per layer, ascending; only a contrast has differences.
        ranked: Layers by falling relative norm; empty for prompts, which have nothing to rank by.
    """

    title: str
    subtitle: str
    rows: tuple[LayerRow, ...]
    ranked: tuple[int, ...]

    @property
    def is_contrast(self) -> bool:
        """Whether there are two sides to compare."""
        return bool(self.ranked)


def layer_chart(record: CaptureRecord) -> LayerChart:
    """Describe the chart of a capture.

    Args:
        record: Its JSON.
    """
    provenance = record["provenance"]
    contrast = record["kind"] == "contrast"
    count = record["num_pairs"] if contrast else len(record["prompts"])
    counted = f"{count} {'pair' if contrast else 'prompt'}{'' if count == 1 else 's'}"
    model = f"{provenance['model']}, " if provenance else ""
    positions = f", positions: {provenance['positions']}" if provenance else ""
    rows = tuple(record["statistics"])
    by_relative_norm = sorted(rows, key=lambda row: -(row["relative_norm"] or 0.0)) if contrast else []
    return LayerChart(
        title=record["concept"] or record["name"],
        subtitle=f"{model}{counted}{positions}",
        rows=rows,
        ranked=tuple(row["layer"] for row in by_relative_norm),
    )
