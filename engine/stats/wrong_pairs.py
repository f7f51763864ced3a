"""Which left-out pairs point the wrong way. Knows projections alone; imports no torch."""

from engine.records.statistics import SideProjections


def wrong_pairs(sides: SideProjections) -> list[int]:
    """Numbers of the pairs whose positive prompt lies on the negative side of its partner, the furthest first.

    Args:
        sides: From `project_sides`.
    """
    gaps = pair_gaps(sides)
    return sorted((pair for pair, gap in enumerate(gaps) if gap < 0), key=lambda pair: gaps[pair])


def pair_gaps(sides: SideProjections) -> list[float]:
    """How far the positive prompt of each pair lies beyond its partner, in units of the spread within a side."""
    return [positive - negative for positive, negative in zip(sides["positive"], sides["negative"], strict=True)]
