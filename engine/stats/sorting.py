"""Compare how well two directions sort the same pairs, from records and without torch."""

from __future__ import annotations

from typing import Literal

from engine.records.results import Transfer

CHANCE = 0.5
_ENOUGH = 0.5  # share of the own direction's excess over chance

Verdict = Literal["as well", "not apart", "worse", "in-sample"]
"""What a comparison says: sorts as well, cannot be told apart, sorts worse, or cannot be compared."""


def strength(found: Transfer) -> float:
    """AUROC of the direction or of its reverse, whichever is higher.

    Args:
        found: A direction on some pairs.

    Example:
        >>> strength({"auroc": 0.25, "low": 0.125, "high": 0.5, "in_order": 0.25})
        0.75
    """
    return max(found["auroc"], 1 - found["auroc"])


def compare_sorting(found: Transfer, own: Transfer) -> Verdict:
    """Compare a direction with the own direction of the pairs that it sorts.

    It sorts worse if its interval ends below the AUROC of the own direction, and its AUROC lies below the interval of
    that one, which is as uncertain. Otherwise it sorts as well if its interval is above chance, and its AUROC above
    chance by at least half as much as that of the own direction. A wide interval, which reaches both, tells nothing
    apart. The reverse of a direction counts like the direction. A direction that sorts pairs of its own fit cannot be
    compared with a held-out one.

    Args:
        found: The direction on the pairs.
        own: The own direction of these pairs, held out.

    Example:
        >>> own = {"auroc": 0.9, "low": 0.8, "high": 0.95, "in_order": 0.9}
        >>> near = {"auroc": 0.85, "low": 0.7, "high": 0.92, "in_order": 0.85}
        >>> compare_sorting(near, own), compare_sorting(near | {"auroc": 0.6, "low": 0.3}, own)
        ('as well', 'not apart')
        >>> compare_sorting(near | {"auroc": 0.75, "high": 0.88}, own)
        'worse'
        >>> compare_sorting(near | {"shared": 72}, own)
        'in-sample'
    """
    if found.get("shared"):
        return "in-sample"
    backwards = found["auroc"] < CHANCE
    low, high = (1 - found["high"], 1 - found["low"]) if backwards else (found["low"], found["high"])
    auroc, target = strength(found), own["auroc"]
    if target > CHANCE and auroc < own["low"] and high < target:
        return "worse"
    enough = auroc >= target or auroc - CHANCE >= _ENOUGH * (target - CHANCE)
    return "as well" if low > CHANCE and enough else "not apart"
