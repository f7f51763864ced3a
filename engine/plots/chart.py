"""What to draw of a capture, as data. Knows records; does not know how anything is drawn, and imports no torch."""

from collections.abc import Callable
from dataclasses import dataclass

from engine.records.files import CaptureRecord
from engine.records.statistics import LayerRow


@dataclass(frozen=True)
class Score:
    """What layers are ranked by.

    Attributes:
        name: As a heading.
        of: The value of a layer.
        decimals: Digits worth showing.
        caveat: What it says, and what it does not.
    """

    name: str
    of: Callable[[LayerRow], float]
    decimals: int
    caveat: str


RELATIVE_NORM = Score(
    "relative norm",
    lambda row: row["relative_norm"] or 0.0,
    4,
    "Relative norm is the distance between the two sides over the size of the states. It describes these prompts; "
    "it does not say whether the difference holds on others. The raw difference norm grows with depth whatever "
    "the concept, and a cosine near 1 is normal.",
)
HELD_OUT = Score(
    "held-out d'",
    lambda row: row["separation"]["by_factor"][row["separation"]["worst"]]["d_prime"] if row["separation"] else 0.0,
    2,
    "Held-out d' is how far apart the two sides lie, in units of their spread, on prompts that had no part in finding "
    "the direction: each persona, template and topic is left out in turn, and the worst of the three counts (without "
    "these, five folds of the pairs). It has no interval yet: layers a few tenths apart may be tied. The raw "
    "difference norm grows with depth whatever the concept, and a cosine near 1 is normal.",
)


@dataclass(frozen=True)
class LayerChart:
    """The statistics of a capture, layer by layer.

    Attributes:
        title: What was captured.
        subtitle: Of which model, from how many prompts, at which positions.
        rows: One per layer, ascending; only a contrast has differences.
        score: What the layers are ranked by; None for prompts, which have nothing to rank by.
        ranked: Layers by falling score.
    """

    title: str
    subtitle: str
    rows: tuple[LayerRow, ...]
    score: Score | None
    ranked: tuple[int, ...]


def layer_chart(record: CaptureRecord) -> LayerChart:
    """Describe the chart of a capture.

    A contrast is ranked by its held-out separation, or by the relative norm if it has too few pairs for one.

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
    score = None
    if contrast:
        score = HELD_OUT if all(row["separation"] for row in rows) else RELATIVE_NORM
    ranked = sorted(rows, key=lambda row: -score.of(row)) if score else []
    return LayerChart(
        title=record["concept"] or record["name"],
        subtitle=f"{model}{counted}{positions}",
        rows=rows,
        score=score,
        ranked=tuple(row["layer"] for row in ranked),
    )
