"""What a design can show: how many pairs, personas, templates and topics a ranking needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from engine.errors import RequestError
from engine.records.captures import ContrastData, Factors, factor_columns
from engine.records.results import ENOUGH_GROUPS, FEWEST_PAIRS, FOLDS
from engine.stats.groups import FEWEST_GROUPS, MOST_UNITS, PAIRS, group_by_factors
from engine.stats.scores import more_pairs
from engine.stats.wordings import number_pairs, wording

if TYPE_CHECKING:
    from torch import Tensor


def cannot_hold_out(data: ContrastData) -> RequestError:
    """Build the error for pairs of which no group can be held out."""
    pairs, apart = data["num_pairs"], _apart(number_pairs(data))
    if apart < min(pairs, FEWEST_PAIRS):
        return RequestError(
            f"the {pairs} pairs share prompts, so that they count as {apart}: too few to rank layers",
            expected=f"at least {FEWEST_PAIRS} pairs without a prompt in common, preferably 30 or more",
            next_step="use each prompt in one pair only",
        )
    if pairs < FEWEST_PAIRS:
        return RequestError(
            f"{pairs} pair{' is' if pairs == 1 else 's are'} too few to rank layers",
            expected=f"at least {FEWEST_PAIRS} pairs, preferably 30 or more",
            next_step=more_pairs(data.get("concept")),
        )
    if group_by_factors(data.get("factors") or []):
        return RequestError(
            "no persona, template or topic can be held out: they share prompts with the others",
            expected=f"at least {FEWEST_GROUPS} values of one of these factors without a prompt in common",
            next_step="use each prompt with one persona, template or topic only",
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
    warnings, numbers = [], number_pairs(data)
    pairs, factors = data["num_pairs"], data.get("factors")
    if PAIRS in counts:
        warnings.append(
            f"the pairs carry no factors: {min(FOLDS, counts[PAIRS])}-fold cross-validation over pairs says nothing"
            " about new personas, templates or topics"
        )
        prompts = len({wording(prompt)[0] for prompt in data["positive"]})
        if prompts < min(_apart(numbers), ENOUGH_GROUPS):
            few = "one prompt" if prompts == 1 else f"{prompts} prompts"
            warnings.append(f"the pairs are responses to {few}: the ranking says nothing about responses to others")
        if (apart := _apart(numbers)) < pairs:
            warnings.append(f"the {pairs} pairs share prompts, so that they count as {apart}")
            pairs = apart
        if pairs > MOST_UNITS:
            warnings.append(f"{pairs} pairs were resampled in {MOST_UNITS} groups")
    elif factors:
        for factor, column in factor_columns(factors).items():
            warnings += _factor_warnings(factor, column)
        warnings += shared_prompts(factors, numbers.tolist())
    if pairs < 20:
        warnings.append(f"{pairs} pairs are few: use 30 or more")
    return warnings


def _factor_warnings(factor: str, column: Sequence[str]) -> list[str]:
    values, untested = {*column}, f"the ranking says nothing about other {factor}s"
    if values == {""}:
        return [f"the pairs name no {factor}: {untested}"]
    if "" in values:
        return [f"{column.count('')} of {len(column)} pairs have no {factor}, so that none is held out: {untested}"]
    if len(values) < FEWEST_GROUPS:
        those = f"one {factor}" if len(values) == 1 else f"two {factor}s"
        return [f"the pairs have {those}, too few to hold any out: {untested}"]
    if len(values) < ENOUGH_GROUPS:
        return [
            f"{len(values)} {factor}s are few: their intervals are wide, and a small p-value says nothing about other"
            f" {factor}s, which {ENOUGH_GROUPS} or more could show"
        ]
    if len(values) > MOST_UNITS:
        return [f"{len(values)} {factor}s were held out and resampled in {MOST_UNITS} groups"]
    return []


def shared_prompts(factors: Sequence[Factors], numbers: Sequence[int]) -> list[str]:
    """Warn of factors whose groups are not independent because pairs of several groups share prompts.

    The crossed test takes no product of two pairs that share a prompt, see `number_shared`.

    Args:
        factors: Factors of each pair.
        numbers: Number of each pair, see `number_pairs`.
    """
    warnings = []
    for factor, column in factor_columns(factors).items():
        values: dict[int, set[str]] = {}
        for number, value in zip(numbers, column, strict=True):
            values.setdefault(number, set()).add(value)
        if shared := sum(len(values[number]) > 1 for number in numbers):
            warnings.append(
                f"{shared} of {len(numbers)} pairs share prompts with pairs of another {factor}: over {factor}s,"
                f" intervals are too narrow, and only the crossed test counts them once; use each prompt with one"
                f" {factor} only"
            )
    return warnings


def _apart(numbers: Tensor) -> int:
    """Number of pairs, those that share a prompt counted once."""
    return int(numbers.max()) + 1 if len(numbers) else 0


def few_values(data: ContrastData) -> list[str]:
    """Factors that vary, but have too few values to hold any out: their variance cannot be told from that of others."""
    columns = factor_columns(data.get("factors") or [])
    return [factor for factor, values in columns.items() if 1 < len({*values}) < FEWEST_GROUPS]
