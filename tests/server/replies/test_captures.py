"""A capture as clients see it says what its record says."""

from pathlib import Path

import pytest

from engine.records.files import record_warnings
from engine.store.catalog import show_capture
from server.replies.captures import summarise_capture


def test_a_contrast(store: Path) -> None:
    record = show_capture("loudness", store=store)
    assert record["ranking"] is not None
    assert record["confounds"] is not None
    summary = summarise_capture(record)
    assert (summary.name, summary.kind, summary.model) == ("loudness", "contrast", "tiny")
    assert (summary.concept, summary.site, summary.positions) == ("loudness", "resid_post", "last")
    assert (summary.pairs, summary.prompts, summary.layers) == (record["num_pairs"], 2 * record["num_pairs"], "0-3")
    best, *others = record["ranking"]["layers"]
    assert summary.leading is not None
    assert summary.leading.layer == best["layer"]
    assert summary.leading.interval == pytest.approx((best["low"], best["high"]), abs=6e-4)
    for row in others:
        assert (str(row["layer"]) in summary.leading.tied) or not row["tied"]
    assert record_warnings(record) == record["ranking"]["warnings"] + record["confounds"]["warnings"]


def test_a_prompt_has_nothing_that_leads(store: Path) -> None:
    summary = summarise_capture(show_capture("prompt", store=store))
    assert (summary.kind, summary.pairs, summary.prompts, summary.leading) == ("prompt", 0, 1, None)


def test_what_came_without_provenance_is_unknown(store: Path) -> None:
    record = show_capture("prompt", store=store)
    record["provenance"] = None
    record["unranked"] = "there is no spread"
    summary = summarise_capture(record)
    assert (summary.model, summary.site, summary.positions) == ("unknown", "unknown", "unknown")
    assert record_warnings(record) == ["not ranked: there is no spread"]
