"""Find contradictions in a record that its types allow, so that every reader can rely on it."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.records.files import CaptureRecord
    from engine.records.results import Ranking


def contradiction(record: CaptureRecord) -> str:
    """Say how a record contradicts itself; empty if it does not.

    Args:
        record: A decoded record.
    """
    layers = record["captured_layers"]
    if not layers or layers[-1] >= record["num_layers"] or any(one >= two for one, two in pairwise(layers)):
        return "its layers are not ascending layers of the model"
    if [row["layer"] for row in record["statistics"]] != layers:
        return "its statistics do not match its layers"
    compared = [row["diff_norm"] is not None and row["cosine_sim"] is not None for row in record["statistics"]]
    if record["ranking"] is not None and not all(compared):
        return "its statistics do not match its ranking"
    return _in_texts(record) or _in_ranking(record["ranking"], layers) or _in_sides(record) or _in_specificity(record)


def _in_texts(record: CaptureRecord) -> str:
    texts, negative, factors = record["prompts"], record["negative_prompts"], record["factors"]
    if len(negative) != (len(texts) if record["kind"] == "contrast" else 0):
        return "it does not have as many negative as positive prompts"
    if factors and len(factors) != len(texts):
        return "it does not have as many factors as pairs"
    for prompts, responses in ((texts, record.get("responses")), (negative, record.get("negative_responses"))):
        if responses is not None and len(responses) != len(prompts):
            return "it does not have as many responses as prompts"
    return ""


def _in_ranking(ranking: Ranking | None, layers: list[int]) -> str:
    if ranking is None:
        return ""
    ranked = [row["layer"] for row in ranking["layers"]]
    if not ranked or not {*ranked} <= {*layers} or len({*ranked}) < len(ranked):
        return "its ranking does not match its layers"
    if [len(row) for row in ranking["margins"]] != [*range(len(ranked) - 1, 0, -1)] or not ranking["tested"]:
        return "its ranking is incomplete"
    return ""


def _in_sides(record: CaptureRecord) -> str:
    known = {*range(len(record["prompts"])), *(pair["number"] for pair in record.get("other_pairs", []))}
    for side in record["sides"]:
        if side["layer"] not in record["captured_layers"] or len(side["positive"]) != len(side["negative"]):
            return "its histograms do not match its layers"
        if not {wrong["pair"] for wrong in side["wrong"]} <= known:
            return "it lacks the texts of misordered pairs"
    return ""


def _in_specificity(record: CaptureRecord) -> str:
    report = record.get("specificity")
    if report is None:
        return ""
    rows = report["layers"]
    layers = [row["layer"] for row in rows]
    names = [[neighbour["name"] for neighbour in row["neighbours"]] for row in rows]
    measured = report["layer"] in layers if rows else report["layer"] is None and bool(report["reason"])
    if not measured or not {*layers} <= {*record["captured_layers"]} or len({*layers}) < len(layers):
        return "its specificity does not match its layers"
    repeated = any(not row or len({*row}) < len(row) for row in names)
    return "a layer has no neighbours, or one twice" if repeated else ""
