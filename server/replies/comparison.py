"""What is answered about two captures side by side."""

from typing import Literal

from pydantic import BaseModel, Field

from engine.records.results import Comparison
from server.replies.reply import Reply, rounded

_MOST_ROWS = 60


class ComparedRow(BaseModel):
    """Two captures at one layer, or at one depth."""

    layer: int
    cosine: float | None = None
    random_within: float | None = Field(default=None, description="|cosine| of random directions, 95%")
    halves_reach: float | None = Field(default=None, description="Cosine of one direction measured twice")
    capture: str | None = None
    depth: float | None = None
    d_prime: float | None = None
    tied: bool | None = None


class ComparisonReply(Reply):
    """Two captures side by side."""

    kind: Literal["directions", "depth"]
    captures: tuple[str, str]
    findings: list[str]
    rows: list[ComparedRow]


def compared_rows(comparison: Comparison) -> list[ComparedRow]:
    """The rows of a comparison, spread evenly where they are too many for one answer."""
    rows = [
        ComparedRow(
            layer=row["layer"],
            cosine=rounded(row["cosine"]),
            random_within=rounded(row["chance"]),
            halves_reach=rounded(row["ceiling"]),
        )
        for row in comparison["directions"]
    ] + [
        ComparedRow(
            layer=row["layer"],
            capture=row["capture"],
            depth=rounded(row["depth"]),
            d_prime=rounded(row["d_prime"]),
            tied=row["tied"],
        )
        for row in comparison["depths"]
    ]
    step = -(-len(rows) // _MOST_ROWS)
    return rows[:: step or 1]
