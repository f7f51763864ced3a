"""What pairs are too few for: why they cannot be ranked, and what a ranking of them leaves unknown, in words."""

from __future__ import annotations

from collections.abc import Mapping

from engine.errors import Remedy, RequestError
from engine.records.captures import ContrastData
from engine.stats.groups import ENOUGH_GROUPS, FEWEST_GROUPS, FEWEST_PAIRS, MOST_UNITS, PAIRS


def nothing_to_leave_out(num_pairs: int) -> RequestError:
    """Why pairs cannot be ranked, of which `group_pairs` made no groups."""
    if num_pairs < FEWEST_PAIRS:
        return RequestError(
            f"{num_pairs} pair{' is' if num_pairs == 1 else 's are'} too few to rank layers by",
            expected=f"at least {FEWEST_PAIRS} pairs, better 30 or more",
            next_step=Remedy.CAPTURE_MORE_PAIRS,
        )
    return RequestError(
        "the pairs have too few personas, templates and topics to leave any out",
        expected=f"at least {FEWEST_GROUPS} of one of them",
        next_step="vary them, or leave the factors out for folds over pairs",
    )


def ranking_warnings(data: ContrastData, counts: Mapping[str, int]) -> list[str]:
    """What the pairs do not let one know.

    Args:
        data: A contrast.
        counts: For each factor that is left out the number of groups.

    Returns:
        Sentences for people.
    """
    warnings = []
    if PAIRS in counts:
        warnings.append(
            "the pairs carry no factors: they were left out in five folds, so nothing is known about new personas,"
            " templates or topics"
        )
        if data["num_pairs"] > MOST_UNITS:
            warnings.append(f"{data['num_pairs']} pairs were drawn in {MOST_UNITS} groups")
    elif factors := data.get("factors"):
        columns = {"persona": {f["persona"] for f in factors}, "template": {f["template"] for f in factors}}
        columns["topic"] = {f["topic"] for f in factors}
        for factor, values in columns.items():
            if len(values) < FEWEST_GROUPS:
                those = f"one {factor}" if len(values) == 1 else f"two {factor}s"
                warnings.append(f"the pairs have {those}, too few to leave any out: nothing is known about others")
            elif len(values) < ENOUGH_GROUPS:
                warnings.append(
                    f"{len(values)} {factor}s are few: intervals over them are wide, and {ENOUGH_GROUPS} or more are"
                    " needed to test against shuffled labels"
                )
            elif len(values) > MOST_UNITS:
                warnings.append(f"{len(values)} {factor}s were left out and drawn in {MOST_UNITS} groups")
    if data["num_pairs"] < 20:
        warnings.append(f"{data['num_pairs']} pairs are few: better 30 or more")
    return warnings
