"""Two captures side by side."""

from __future__ import annotations

from typing import Literal, TypedDict


class ComparedLayer(TypedDict):
    """Two directions at one layer.

    Attributes:
        layer: Layer number.
        cosine: Cosine of the two mean differences.
        chance: What the absolute cosine stays below in 95% of cases for random directions of the same two captures.
        ceiling: What the directions of two halves of one capture reach: the cosine to expect of one and the same
            direction measured twice, from half of the groups.
    """

    layer: int
    cosine: float
    chance: float
    ceiling: float


class DepthRow(TypedDict):
    """One layer of one of two models.

    Attributes:
        capture: Name of the capture.
        layer: Layer number.
        depth: How far through the model its block ends, 0 to 1.
        d_prime: Held-out d'.
        low: Lower end of its interval.
        high: Upper end.
        tied: Whether first place is open to it.
    """

    capture: str
    layer: int
    depth: float
    d_prime: float
    low: float
    high: float
    tied: bool


class Comparison(TypedDict):
    """Two captures side by side.

    Attributes:
        kind: `directions` on one model, `depth` for one concept on two models.
        names: The two captures.
        titles: Their concepts, or their models: what differs.
        directions: Layers that both have, ascending; empty for `depth`.
        depths: Layers of both; empty for `directions`.
        warnings: What must be known before believing it.
    """

    kind: Literal["directions", "depth"]
    names: tuple[str, str]
    titles: tuple[str, str]
    directions: list[ComparedLayer]
    depths: list[DepthRow]
    warnings: list[str]
