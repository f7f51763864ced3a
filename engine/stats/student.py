"""Student's t: what few groups cost an interval."""

from scipy.special import ndtri, stdtrit


def half_width(groups: int, confidence: float) -> float:
    """Standard deviations that a two-sided interval reaches to each side when they come from this many groups."""
    return float(stdtrit(groups - 1, (1 + confidence) / 2))


def widening(groups: int, confidence: float) -> float:
    """How much further a one-sided bound reaches for being estimated from this many groups and not from very many."""
    return float(stdtrit(groups - 1, confidence) / ndtri(confidence))
