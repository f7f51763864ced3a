"""Quartiles of a side, from the counts that the record of a capture holds. Knows records alone; imports no torch."""

from typing import Literal

from engine.records.statistics import SideSummary

_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def side_quartiles(summary: SideSummary, side: Literal["positive", "negative"]) -> list[float]:
    """Minimum, quartiles and maximum of the projections of one side, each to half a step of what was counted.

    Args:
        summary: One layer of a record's `sides`.
        side: Which side.

    Returns:
        Five numbers, ascending, in units of the spread within a side; 0 is half-way between the sides.

    Example:
        >>> from engine.stats.sides import summarise_sides
        >>> contrast = capture_from_concept(model, tokenizer, "honesty", layers=[16], max_samples=24)
        >>> quartiles = side_quartiles(summarise_sides(contrast)[0], "positive")
        >>> len(quartiles), quartiles == sorted(quartiles)
        (5, True)
    """
    counts = summary[side]
    step = (summary["high"] - summary["low"]) / len(counts)
    middles = [summary["low"] + step * (number + 0.5) for number, count in enumerate(counts) for _ in range(count)]
    return [middles[round(share * (len(middles) - 1))] for share in _SHARES]
