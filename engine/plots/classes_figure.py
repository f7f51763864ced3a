"""Draw where the two sides lie at one layer as a figure. Knows matplotlib; imported only to draw."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from engine.plots.style import BLUE, INK, ORANGE, head
from engine.plots.words import left_out_in_words
from engine.records.results import SideProjections


def draw_sides(sides: SideProjections, title: str = "", figure: Figure | None = None) -> Figure:
    """Draw the distribution of both sides, and each pair as a line from its negative to its positive prompt.

    Args:
        sides: From `project_sides`.
        title: What was captured.
        figure: Drawn into if given, for a window.
    """
    drawn = figure or Figure(figsize=(5.4, 3.6), layout="constrained")
    subtitle = f"layer {sides['layer']}, {left_out_in_words(sides['left_out'])} left out: d' {sides['d_prime']:.2f}"
    head(drawn, title, f"{subtitle}, AUROC {sides['auroc']:.3f}")
    above, below = drawn.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    edges = np.histogram_bin_edges([*sides["positive"], *sides["negative"]], bins=24)
    for side, color, name, hatch in (("negative", BLUE, "negative", "//"), ("positive", ORANGE, "positive", "")):
        values = sides["negative"] if side == "negative" else sides["positive"]
        above.hist(values, bins=edges.tolist(), color=color, alpha=0.55, hatch=hatch, edgecolor="white", label=name)
        above.axvline(float(np.mean(values)), color=color, linewidth=1.2)
    above.set_ylabel("prompts")
    above.legend(loc="upper left")
    pairs = sorted(zip(sides["negative"], sides["positive"], strict=True), key=lambda pair: pair[1] - pair[0])
    for row, (negative, positive) in enumerate(pairs):
        right = positive > negative
        below.plot([negative, positive], [row, row], color=INK if right else "#b00020", linewidth=0.5 if right else 1.0)
    below.plot([negative for negative, _ in pairs], range(len(pairs)), "s", color=BLUE, markersize=2)
    below.plot([positive for _, positive in pairs], range(len(pairs)), "o", color=ORANGE, markersize=2)
    below.set_ylabel("pair")
    below.set_xlabel("projection of left-out prompts (units of the spread within a side)")
    return drawn
