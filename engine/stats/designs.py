"""What a design can show: how many pairs, personas, templates and topics a ranking needs."""

from __future__ import annotations

from collections.abc import Mapping

from engine.errors import RequestError
from engine.records.captures import ContrastData, factor_columns
from engine.remedies import Remedy
from engine.stats.groups import ENOUGH_GROUPS, FEWEST_GROUPS, FEWEST_PAIRS, MOST_UNITS, PAIRS
from engine.stats.shared_pairs import wording


def cannot_hold_out(num_pairs: int) -> RequestError:
    """Build the error for pairs of which no group can be held out."""
    if num_pairs < FEWEST_PAIRS:
        return RequestError(
            f"{num_pairs} pair{' is' if num_pairs == 1 else 's are'} too few to rank layers",
            expected=f"at least {FEWEST_PAIRS} pairs, preferably 30 or more",
            next_step=Remedy.CAPTURE_MORE_PAIRS,
        )
    return RequestError(
        "the pairs have too few personas, templates and topics to hold any out",
        expected=f"at least {FEWEST_GROUPS} values of one of these factors",
        next_step="vary a factor, or omit the factors to cross-validate in folds over pairs",
    )


def ranking_warnings(data: ContrastData, counts: Mapping[str, int]) -> list[str]:
    """Describe the limits of a ranking from these pairs.

    Args:
        data: A contrast.
        counts: Number of groups of each factor that is held out.

    Returns:
        One warning per limit, empty if there are none.
    """
    warnings = []
    if PAIRS in counts:
        warnings.append(
            "the pairs carry no factors: cross-validation in five folds over pairs says nothing about new personas,"
            " templates or topics"
        )
        if data["num_pairs"] > MOST_UNITS:
            warnings.append(f"{data['num_pairs']} pairs were resampled in {MOST_UNITS} groups")
    elif factors := data.get("factors"):
        for factor, column in factor_columns(factors).items():
            values = {*column}
            if len(values) < FEWEST_GROUPS:
                those = f"one {factor}" if len(values) == 1 else f"two {factor}s"
                warnings.append(
                    f"the pairs have {those}, too few to hold any out: the ranking says nothing about other {factor}s"
                )
            elif len(values) < ENOUGH_GROUPS:
                warnings.append(
                    f"{len(values)} {factor}s are few: their intervals are wide, and a permutation test needs"
                    f" {ENOUGH_GROUPS} or more to reach p < 0.05"
                )
            elif len(values) > MOST_UNITS:
                warnings.append(f"{len(values)} {factor}s were held out and resampled in {MOST_UNITS} groups")
    if data["num_pairs"] < 20:
        warnings.append(f"{data['num_pairs']} pairs are few: use 30 or more")
    if repeated := data["num_pairs"] - _distinct_pairs(data):
        warnings.append(
            f"{repeated} of {data['num_pairs']} pairs repeat {'another' if repeated == 1 else 'others'} word for word:"
            " they count as independent, so intervals are too narrow and p-values too small; capture each pair once"
        )
    return warnings


def _distinct_pairs(data: ContrastData) -> int:
    sides = zip(data["positive"], data["negative"], strict=True)
    return len({(wording(positive), wording(negative)) for positive, negative in sides})


def few_values(data: ContrastData) -> list[str]:
    """Factors that vary, but have too few values to hold any out: their variance cannot be told from that of others."""
    columns = factor_columns(data.get("factors") or [])
    return [factor for factor, values in columns.items() if 1 < len({*values}) < FEWEST_GROUPS]
