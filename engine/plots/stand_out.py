"""How far each token of a text stands out within its layer. Knows numbers alone; the unit of every heat map."""

from collections.abc import Sequence
from statistics import median

_NORMAL = 1.4826  # the standard deviation of a normal distribution over its median absolute deviation
MOST_SPREADS = 3.0
"""Where the colours of a heat map end."""


def stand_out(values: Sequence[float]) -> list[float]:
    """How far each token lies from the median of a layer, in spreads of its tokens; the first token counts for neither.

    A spread is the median absolute deviation, scaled to the standard deviation of a normal distribution. Values in
    class gaps would show one colour a layer: early layers have hardly a gap, and in most layers all tokens of running
    text lie to one side of the tokens that the direction was read at.

    Args:
        values: One a token.
    """
    others = values[1:] or values
    middle = median(others)
    spread = _NORMAL * median(abs(value - middle) for value in others)
    return [(value - middle) / spread if spread > 0 else 0.0 for value in values]
