"""Specificity in records: after a capture, later, and why it is missing."""

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.capture.request import written_pairs
from engine.concepts.catalog import load_concept
from engine.errors import RequestError, StoreError
from engine.jobs import JobCancelled
from engine.records.captures import Concept
from engine.records.files import CaptureRecord
from engine.records.results import SpecificityReport
from engine.runtime import Processes
from engine.store import neighbours, specificity
from engine.store.catalog import show_capture
from engine.store.names import CapturePaths, locate
from engine.store.read import load_contrast
from engine.store.record import encode_record, read_record
from tests.engine.cli.conftest import concept_text


@pytest.fixture
def concepts(tmp_path: Path) -> dict[str, Concept]:
    """Concepts in the words of the tiny tokenizer."""
    made = {}
    for name in ("loudness", "warmth", "calm"):
        path = tmp_path / f"{name}.toml"
        path.write_text(concept_text(name))
        made[name] = load_concept(path)
    return made


@pytest.fixture(autouse=True)
def _tiny_neighbours(monkeypatch: pytest.MonkeyPatch, concepts: dict[str, Concept], tmp_path: Path) -> None:
    """Warmth and calm are the built-in neighbours, kept in a folder of this test."""
    monkeypatch.setattr(specificity, "built_in_neighbours", lambda: [concepts["warmth"], concepts["calm"]])
    monkeypatch.setattr(neighbours, "neighbours_path", lambda: tmp_path / "kept")


class Tiny:
    """Captures with the tiny model into one store."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, store: Path) -> None:
        self.model, self.tokenizer, self.store = model, tokenizer, store

    def capture(self, source: Any, name: str, **how: Any) -> CapturePaths:
        run = {key: how.pop(key) for key in ("steps", "processes") if key in how}
        request = engine.CaptureRequest(source, paths=locate(name, self.store), **how)
        return engine.capture_and_save(self.model, self.tokenizer, request, **run)

    def report(self, name: str) -> SpecificityReport:
        found = show_capture(name, store=self.store)["specificity"]
        assert found is not None
        return found

    def add(self, name: str, *others: str) -> SpecificityReport:
        return engine.add_specificity(name, self.model, self.tokenizer, others, store=self.store)


@pytest.fixture
def tiny(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Tiny:
    return Tiny(tiny_llama, tiny_tokenizer, tmp_path / "store")


@pytest.mark.parametrize("shards", [False, True])
def test_a_captured_concept_is_compared_with_its_neighbours(
    tiny: Tiny, concepts: dict[str, Concept], shards: bool
) -> None:
    steps: list[str] = []
    tiny.capture(concepts["loudness"], "loudness", shards=shards, steps=lambda step, *_: steps.append(step))
    record, report = show_capture("loudness", store=tiny.store), tiny.report("loudness")
    ranking = record["ranking"]
    assert ranking is not None
    others = {
        name: engine.capture_from_concept(tiny.model, tiny.tokenizer, concepts[name], positions="last")
        for name in ("warmth", "calm")
    }
    best = ranking["layers"][0]
    expected = engine.measure_specificity(load_contrast("loudness", store=tiny.store), others, layer=best["layer"])
    assert report == expected
    (row,) = (row for row in report["layers"] if row["layer"] == report["layer"])
    assert (row["d_prime"], row["own"]["auroc"]) == pytest.approx((best["d_prime"], best["auroc"]))
    assert {"warmth: running prompts", "calm: running prompts", "comparing with neighbours"} <= {*steps}
    assert engine.verify_capture("loudness", store=tiny.store).status == "ok"


def test_a_concept_is_no_neighbour_of_itself(tiny: Tiny, concepts: dict[str, Concept]) -> None:
    tiny.capture(concepts["warmth"], "warmth")
    assert [row["name"] for row in tiny.report("warmth")["layers"][0]["neighbours"]] == ["calm"]


def test_nothing_is_measured_unless_asked(tiny: Tiny, concepts: dict[str, Concept], tmp_path: Path) -> None:
    tiny.capture(concepts["loudness"], "off", specificity=False)
    tiny.capture(concepts["loudness"], "unranked", max_samples=3)
    tiny.capture(["w5 w6", "w7"], "prompts")
    for name in ("off", "unranked", "prompts"):
        assert "specificity" not in show_capture(name, store=tiny.store)
    assert not (tmp_path / "kept").exists()


def test_what_stands_in_the_way_is_in_the_record_and_the_capture_is_kept(
    tiny: Tiny, concepts: dict[str, Concept], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.capture(concepts["loudness"], "span", positions="mean:1:3")
    assert "positions mean:1:3" in tiny.report("span")["reason"]
    tiny.capture(concepts["loudness"], "shared", shards=True, processes=Processes(0, 1))
    assert tiny.report("shared")["reason"] == ""
    monkeypatch.setattr(
        specificity, "capture_neighbours", lambda *_, **__: (_ for _ in ()).throw(RequestError("no prompts fit"))
    )
    paths = tiny.capture(concepts["loudness"], "refused")
    assert (tiny.report("refused")["reason"], tiny.report("refused")["layers"]) == ("no prompts fit", [])
    assert engine.verify_capture(paths.name, store=tiny.store).status == "ok"


def test_several_processes_and_offloaded_models_are_left_out(
    tiny: Tiny, concepts: dict[str, Concept], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = tiny.capture(concepts["loudness"], "loudness", specificity=False)
    request = engine.CaptureRequest(concepts["loudness"])

    def after(processes: Processes) -> None:
        specificity.add_captured_specificity(
            request, paths, tiny.model, tiny.tokenizer, None, steps=lambda *_: None, processes=processes
        )

    after(Processes(1, 2))
    assert "specificity" not in show_capture("loudness", store=tiny.store)
    after(Processes(0, 2))
    assert tiny.report("loudness")["reason"] == "2 processes shared the capture"
    monkeypatch.setattr("engine.models.offload.is_offloaded", lambda _: True)
    after(Processes())
    assert "offloaded" in tiny.report("loudness")["reason"]


def test_neighbours_that_are_not_cached_can_be_left_out(
    tiny: Tiny, concepts: dict[str, Concept], tmp_path: Path
) -> None:
    tiny.capture(concepts["loudness"], "quick", new_neighbours=False)
    assert tiny.report("quick")["reason"] == "a quick capture"
    assert not (tmp_path / "kept").exists()
    added = tiny.add("quick")
    assert [row["name"] for row in added["layers"][0]["neighbours"]] == ["warmth", "calm"]
    tiny.capture(concepts["loudness"], "cached", new_neighbours=False)
    assert tiny.report("cached") == added
    for record in (tmp_path / "kept").glob("calm-*.json"):
        record.unlink()
    tiny.capture(concepts["calm"], "calm", new_neighbours=False)
    assert [row["name"] for row in tiny.report("calm")["layers"][0]["neighbours"]] == ["warmth"]
    tiny.capture(concepts["loudness"], "one_missing", new_neighbours=False)
    assert "a quick capture" in tiny.report("one_missing")["reason"]


def test_an_interrupted_comparison_leaves_the_capture(tiny: Tiny, concepts: dict[str, Concept]) -> None:
    def stop(step: str, *_: int) -> None:
        if step == specificity.SPECIFICITY:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny.capture(concepts["loudness"], "loudness", steps=stop)
    assert show_capture("loudness", store=tiny.store)["ranking"] is not None
    assert "specificity" not in show_capture("loudness", store=tiny.store)
    tiny.add("loudness")
    assert tiny.report("loudness")["layers"]


@pytest.mark.parametrize("step", ["calm: running prompts", specificity.SPECIFICITY])
def test_a_job_cancelled_during_the_comparison_has_saved_its_capture(
    tiny: Tiny, concepts: dict[str, Concept], step: str
) -> None:
    def cancel(said: str, *_: int) -> None:
        if said == step:
            raise JobCancelled

    assert tiny.capture(concepts["loudness"], "loudness", steps=cancel).name == "loudness"
    assert "specificity" not in show_capture("loudness", store=tiny.store)


def test_other_captures_are_neighbours_too(tiny: Tiny, concepts: dict[str, Concept]) -> None:
    tiny.capture(concepts["loudness"], "loudness", specificity=False)
    tiny.capture(concepts["calm"], "mine", specificity=False)
    report = tiny.add("loudness", "mine")
    assert report == tiny.report("loudness")
    warm, calm, mine = report["layers"][0]["neighbours"]
    assert (warm["name"], calm["name"], mine["name"]) == ("warmth", "calm", "mine")
    assert calm | {"name": "mine"} == mine


def test_a_neighbour_with_fewer_layers_is_left_out_of_the_others(tiny: Tiny, concepts: dict[str, Concept]) -> None:
    tiny.capture(concepts["loudness"], "loudness", specificity=False)
    tiny.capture(concepts["calm"], "mine", layers=[1], specificity=False)
    report = tiny.add("loudness", "mine")
    assert report == tiny.report("loudness")
    with_it = [row["layer"] for row in report["layers"] if "mine" in [each["name"] for each in row["neighbours"]]]
    assert (with_it, len(report["layers"])) == ([1], 4)
    assert report["warnings"] == ["mine lacks layers 0, 2, 3 and is not compared there"]


def test_pairs_of_ones_own_are_compared_on_request(tiny: Tiny) -> None:
    pairs = [(f"w{5 + i} w{30 + i % 3} w9", f"w{5 + i} w{30 + i % 3} w8") for i in range(20)]
    source = written_pairs(*zip(*pairs, strict=True))
    tiny.capture(source, "mine")
    assert "specificity" not in show_capture("mine", store=tiny.store)
    assert tiny.add("mine")["resampled"] == "pairs"


def test_what_cannot_be_compared_is_refused(tiny: Tiny, concepts: dict[str, Concept]) -> None:
    tiny.capture(concepts["loudness"], "loudness", specificity=False)
    tiny.capture(concepts["calm"], "whole", positions="all", specificity=False)
    tiny.capture(concepts["calm"], "few", max_samples=3)
    tiny.capture(["w5 w6", "w7"], "prompts")
    for others, said in (("loudness", "own neighbour"), ("whole", "positions"), ("prompts", "prompts")):
        with pytest.raises(RequestError, match=said):
            tiny.add("loudness", others)
    with pytest.raises(RequestError, match="no ranking"):
        tiny.add("few")
    with pytest.raises(RequestError, match="prompts"):
        tiny.add("prompts")
    assert "specificity" not in show_capture("loudness", store=tiny.store)


def test_a_capture_replaced_meanwhile_keeps_its_own_record(
    tiny: Tiny, concepts: dict[str, Concept], caplog: pytest.LogCaptureFixture
) -> None:
    """Another process replaces the capture while it is compared: the report is about tensors that are gone."""
    done: list[str] = []

    def replace(step: str, *_: int) -> None:
        if step == specificity.SPECIFICITY and not done:
            done.append(step)
            tiny.capture(concepts["loudness"], "loudness", max_samples=12, specificity=False, force=True)

    tiny.capture(concepts["loudness"], "loudness", steps=replace)
    record = show_capture("loudness", store=tiny.store)
    assert (record["num_pairs"], "specificity" in record) == (12, False)
    assert "was replaced" in caplog.text


def test_a_capture_replaced_as_soon_as_it_is_saved_is_compared_itself(
    tiny: Tiny, concepts: dict[str, Concept], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process replaces it before its record is read: the report is about the tensors that are there now."""

    def replaced_first(path: Path) -> CaptureRecord:
        monkeypatch.setattr(specificity, "read_record", read_record)
        tiny.capture(concepts["loudness"], "loudness", max_samples=12, specificity=False, force=True)
        return read_record(path)

    monkeypatch.setattr(specificity, "read_record", replaced_first)
    tiny.capture(concepts["loudness"], "loudness")
    found = tiny.report("loudness")
    tiny.add("loudness")
    assert tiny.report("loudness")["layers"] == found["layers"]


def test_a_capture_in_memory_is_not_read_again(
    tiny: Tiny, concepts: dict[str, Concept], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(specificity, "load_contrast", lambda *_: pytest.fail("it was read"))
    tiny.capture(concepts["loudness"], "loudness")
    assert tiny.report("loudness")["layers"]


def test_a_record_that_contradicts_itself_is_refused(tiny: Tiny, concepts: dict[str, Concept]) -> None:
    paths = tiny.capture(concepts["loudness"], "loudness")
    good = read_record(paths.record)
    report = tiny.report("loudness")
    changes: list[dict[str, Any]] = [
        {"layer": 99},
        {"layer": None},
        {"layers": []},
        {"layers": [report["layers"][0] | {"layer": 99}, *report["layers"]]},
        {"layers": [report["layers"][0] | {"neighbours": []}, *report["layers"][1:]]},
        {
            "layers": [
                report["layers"][0] | {"neighbours": report["layers"][0]["neighbours"] * 2},
                *report["layers"][1:],
            ]
        },
    ]
    for change in changes:
        good["specificity"] = report | change  # type: ignore[typeddict-item]  # merging loses the TypedDict
        paths.record.write_bytes(encode_record(good))
        with pytest.raises(StoreError, match="damaged"):
            read_record(paths.record)
