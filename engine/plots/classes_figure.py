"""Draw the projections of both classes at one layer as a figure."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from engine.plots.findings import left_out_in_words
from engine.plots.style import BLUE, INK, ORANGE, head
from engine.records.results import FOLDS, ClassProjections

_DENSE = 72  # pairs that fit below each other


def draw_sides(sides: ClassProjections, title: str = "", figure: Figure | None = None) -> Figure:
    """Draw histograms of both classes, and each pair as a line.

    A line connects the projections of the pair's two prompts; misordered pairs are red.

    Args:
        sides: Projections from `project_sides`.
        title: Title of the figure.
        figure: Figure to draw into, for example that of a window; a new one by default.

    Returns:
        The figure.
    """
    drawn = figure or Figure(figsize=(5.4, 3.6), layout="constrained")
    scheme = left_out_in_words(sides["left_out"], sides.get("folds", FOLDS))
    subtitle = f"layer {sides['layer']}, {scheme}: d' {sides['d_prime']:.2f}"
    head(drawn, title, f"{subtitle}, AUROC {sides['auroc']:.3f}")
    above, below = drawn.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    edges = np.histogram_bin_edges([*sides["positive"], *sides["negative"]], bins=24)
    for values, color, name, hatch in (
        (sides["negative"], BLUE, "negative class", "//"),
        (sides["positive"], ORANGE, "positive class", ""),
    ):
        above.hist(values, bins=edges.tolist(), color=color, alpha=0.55, hatch=hatch, edgecolor="white", label=name)
        above.axvline(float(np.mean(values)), color=color, linewidth=1.2)
    above.set_ylabel("prompts")
    above.legend(loc="upper left")
    pairs = sorted(zip(sides["negative"], sides["positive"], strict=True), key=lambda pair: pair[1] - pair[0])
    thin = min(1.0, _DENSE / len(pairs))  # many lines and marks would cover each other
    for row, (negative, positive) in enumerate(pairs):
        color, width = (INK, 0.5 * thin) if positive > negative else ("#b00020", 1.0)
        below.plot([negative, positive], [row, row], color=color, linewidth=width)
    marks = 2 * thin**0.5
    below.plot([negative for negative, _ in pairs], range(len(pairs)), "s", color=BLUE, markersize=marks)
    below.plot([positive for _, positive in pairs], range(len(pairs)), "o", color=ORANGE, markersize=marks)
    below.set_ylabel("pair")
    below.set_xlabel("projection of held-out prompts (pooled within-class SD)")
    return drawn
