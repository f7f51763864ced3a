"""Which captures can be compared, and what limits a comparison."""

from __future__ import annotations

from engine.errors import RequestError
from engine.records.captures import Provenance, factor_columns, model_differences
from engine.records.files import CaptureRecord

_SHOULD_AGREE = ("attention", "chat_template")


def require_contrasts(*records: CaptureRecord) -> None:
    """Refuse captures of prompts.

    Raises:
        RequestError: A record is not one of a contrast.
    """
    for record in records:
        if record["kind"] != "contrast":
            raise RequestError(
                f"{record['name']} is a capture of prompts: it has no direction", expected="two contrasts"
            )


def provenance_of(record: CaptureRecord) -> Provenance:
    """The provenance of a capture.

    Raises:
        RequestError: The record has none.
    """
    if record["provenance"] is None:
        raise RequestError(f"{record['name']} has no provenance and cannot be compared", next_step="capture it again")
    return record["provenance"]


def require_same_reading(one: CaptureRecord, other: CaptureRecord, *, same_model: bool = False) -> None:
    """Require the same site and positions, and on request the same model.

    Raises:
        RequestError: The captures differ, or one has no provenance.
    """
    first, second = provenance_of(one), provenance_of(other)
    if ("responses" in first) != ("responses" in second):
        answered, bare = (one, other) if "responses" in first else (other, one)
        raise RequestError(
            f"{answered['name']} was captured with responses and {bare['name']} without",
            expected="the same kind of text",
            next_step="capture one of them again with the settings of the other",
        )
    if first["site"] != second["site"] or first["positions"] != second["positions"]:
        raise RequestError(
            f"{one['name']} and {other['name']} differ in site or positions:"
            f" {first['site']}, positions {first['positions']}, and {second['site']}, positions {second['positions']}",
            expected="the same site and positions",
            next_step="capture one of them again with the settings of the other",
        )
    if same_model and first["model"] != second["model"]:
        raise RequestError(
            f"{one['name']} and {other['name']} differ in model: {first['model']} and {second['model']}",
            expected="captures of one model",
            next_step="capture one of the concepts on the other capture's model",
        )


def groups_in_common(one: CaptureRecord, other: CaptureRecord) -> list[str]:
    """Warn if two captures of one concept have personas, templates or topics in common, as far as their records show.

    What is special about these groups is then in the fit and in the pairs to sort, even if the pairs differ.
    """
    if one["concept"] != other["concept"]:
        return []
    count, columns = len(one["factors"]), factor_columns([*one["factors"], *other["factors"]])
    values = {factor: ({*column[:count]}, {*column[count:]}) for factor, column in columns.items()}
    shared = [f"{factor}s" for factor, (mine, theirs) in values.items() if mine & theirs and len(mine | theirs) > 1]
    if not shared:
        return []
    return [
        f"{one['name']} and {other['name']} have {', '.join(shared)} in common: AUROC of one direction on the pairs of"
        " the other says nothing about new ones"
    ]


def differences_between(one: CaptureRecord, other: CaptureRecord) -> list[str]:
    """Describe what limits the comparison of two captures of one model, one warning per difference."""
    first, second = provenance_of(one), provenance_of(other)
    fields = [(field, str(dict(first)[field]), str(dict(second)[field])) for field in _SHOULD_AGREE]
    differing = [entry for entry in fields if entry[1] != entry[2]] + model_differences(first, second)
    return [f"they differ in {field}: {mine} and {theirs}" for field, mine, theirs in differing]
