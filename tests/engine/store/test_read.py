"""Loading returns what was saved; damaged and malicious files are refused and run no code."""

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import engine
from engine.errors import RequestError, StoreError
from engine.records.captures import ActivationData, ContrastData
from engine.store.catalog import show_capture
from engine.store.read import describe_tensors, load_contrast


def test_a_contrast_loads_completely(contrast_data: ContrastData, tmp_path: Path) -> None:
    engine.save_activations(contrast_data, "mine", store=tmp_path)
    loaded = engine.load_activations("mine", store=tmp_path)
    assert "positive" in loaded
    assert loaded["factors"] == contrast_data["factors"]
    assert loaded["provenance"] == contrast_data["provenance"]
    for one, two in zip(
        [*loaded["positive"], *loaded["negative"]],
        [*contrast_data["positive"], *contrast_data["negative"]],
        strict=True,
    ):
        assert one["tokens"] == two["tokens"]
        assert all(torch.equal(one["activations"][i], two["activations"][i]) for i in range(4))


@pytest.mark.parametrize("name", ["mine", "mine.pt", "mine.json"])
def test_a_path_with_or_without_suffix(prompt_data: ActivationData, tmp_path: Path, name: str) -> None:
    engine.save_activations(prompt_data, tmp_path / "mine")
    loaded = engine.load_activations(tmp_path / name)
    assert "prompt" in loaded
    assert loaded["prompt"] == "w5 w6 w7"


def test_a_missing_capture_says_where_to_look(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no capture at .*mine\.pt.*list_captures"):
        engine.load_activations("mine", store=tmp_path)


@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_a_truncated_file_is_damaged(prompt_data: ActivationData, tmp_path: Path, kept: int) -> None:
    paths = engine.save_activations(prompt_data, "mine", store=tmp_path)
    paths.tensors.write_bytes(paths.tensors.read_bytes()[:kept])
    with pytest.raises(StoreError, match=r"damaged|does not match the tensors"):
        engine.load_activations("mine", store=tmp_path)
    (entry,) = engine.list_captures(tmp_path)
    assert "its record says" in entry.problem


class Hostile:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_pickle_that_would_run_code_runs_nothing(tmp_path: Path, wrapped: bool) -> None:
    bait = tmp_path / "ran"
    with (tmp_path / "mine.pt").open("wb") as file:
        (torch.save if wrapped else pickle.dump)({"activations": Hostile(bait)}, file)
    with pytest.raises(StoreError, match="no code in it was run"):
        engine.load_activations("mine", store=tmp_path)
    assert not bait.exists()


def test_a_file_that_is_not_a_capture_is_refused(tmp_path: Path) -> None:
    torch.save({"weights": torch.ones(2)}, tmp_path / "mine.pt")
    with pytest.raises(StoreError, match="is not a capture"):
        engine.load_activations("mine", store=tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("captured_layers", [0, 1]), ("kind", "contrast"), ("data", {"name": "mine.pt", "bytes": 1, "sha256": "0" * 64})],
)
def test_a_record_that_disagrees_is_refused(
    prompt_data: ActivationData, tmp_path: Path, field: str, value: object
) -> None:
    paths = engine.save_activations(prompt_data, "mine", store=tmp_path)
    record = json.loads(paths.record.read_text())
    paths.record.write_text(json.dumps(record | {field: value}))
    with pytest.raises(StoreError, match="does not match the tensors"):
        engine.load_activations("mine", store=tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged: Expected `object`"),
        ('{"schema": 3}', "is damaged: Object missing required field"),
        ("\x00\xff", "is damaged"),
    ],
)
def test_a_damaged_record_says_what_is_wrong(
    prompt_data: ActivationData, tmp_path: Path, content: str, said: str
) -> None:
    paths = engine.save_activations(prompt_data, "mine", store=tmp_path)
    paths.record.write_bytes(content.encode("latin-1"))
    with pytest.raises(StoreError, match=said):
        engine.load_activations("mine", store=tmp_path)
    (entry,) = engine.list_captures(tmp_path)
    assert "is damaged" in entry.problem


def test_a_newer_record_is_refused(prompt_data: ActivationData, tmp_path: Path) -> None:
    paths = engine.save_activations(prompt_data, "mine", store=tmp_path)
    record = json.loads(paths.record.read_text())
    paths.record.write_text(json.dumps(record | {"schema": 99}))
    with pytest.raises(StoreError, match=r"has schema 99\. Expected: schema 3; another version.*Next: capture again"):
        engine.load_activations("mine", store=tmp_path)


def of_schema_1(record: dict[str, Any]) -> dict[str, Any]:
    """A record as layerscope wrote it before it ranked layers."""
    kept = {key: value for key, value in record.items() if key not in {"ranking", "unranked", "confounds"}}
    rows = [{key: value for key, value in row.items() if key != "pair_cosine"} for row in record["statistics"]]
    receipt = {k: v for k, v in record["provenance"]["receipt"].items() if k not in {"attn_out", "mlp_out"}}
    provenance = record["provenance"] | {"receipt": receipt}
    return kept | {"schema": 1, "statistics": [row | {"separation": None} for row in rows], "provenance": provenance}


def test_an_older_record_is_not_reported_as_damaged(contrast_data: ContrastData, tmp_path: Path) -> None:
    paths = engine.save_activations(contrast_data, "mine", store=tmp_path)
    paths.record.write_text(json.dumps(of_schema_1(json.loads(paths.record.read_text()))))
    for read in (engine.load_activations, show_capture):
        with pytest.raises(StoreError, match=r"has schema 1.*capture again") as caught:
            read("mine", store=tmp_path)
        assert "damaged" not in str(caught.value)
    (entry,) = engine.list_captures(tmp_path)
    assert "has schema 1" in entry.problem


def test_tensors_of_an_older_version_load_without_their_record(contrast_data: ContrastData, tmp_path: Path) -> None:
    """The tensors have no schema, so only the record must be made again."""
    paths = engine.save_activations(contrast_data, "mine", store=tmp_path)
    paths.record.unlink()
    assert "positive" in engine.load_activations("mine", store=tmp_path)
    assert describe_tensors(paths.tensors)["schema"] == 3


def test_tensors_without_a_record_load_with_a_warning(
    prompt_data: ActivationData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = engine.save_activations(prompt_data, "mine", store=tmp_path)
    statistics = json.loads(paths.record.read_text())["statistics"]
    paths.record.unlink()
    with caplog.at_level(logging.WARNING):
        assert "provenance" not in engine.load_activations("mine", store=tmp_path)
    assert "provenance and factors are unknown" in caplog.text
    assert json.loads(json.dumps(describe_tensors(paths.tensors)["statistics"])) == statistics


def test_pairs_without_a_record_are_ranked_without_factors(ranked_data: ContrastData, tmp_path: Path) -> None:
    paths = engine.save_activations(ranked_data, "mine", store=tmp_path)
    paths.record.unlink()
    ranking = describe_tensors(paths.tensors)["ranking"]
    assert ranking is not None
    assert set(ranking["groups"]) == {"pairs"}
    assert "the pairs carry no factors" in " ".join(ranking["warnings"])


def test_load_contrast_loads_a_contrast(contrast_data: ContrastData, tmp_path: Path) -> None:
    engine.save_activations(contrast_data, "mine", store=tmp_path)
    for loaded in (load_contrast("mine", store=tmp_path), load_contrast(tmp_path / "mine.pt")):
        assert (loaded["num_pairs"], loaded["layers"]) == (2, [0, 1, 2, 3])
        assert (loaded["factors"], loaded["provenance"]) == (contrast_data["factors"], contrast_data["provenance"])
        for side in (0, 1):
            one, two = ((data["positive"], data["negative"])[side] for data in (loaded, contrast_data))
            for first, second in zip(one, two, strict=True):
                assert all(torch.equal(first["activations"][i], second["activations"][i]) for i in range(4))


def test_prompts_are_not_loaded_as_a_contrast(prompt_data: ActivationData, tmp_path: Path) -> None:
    engine.save_activations(prompt_data, "mine", store=tmp_path)
    with pytest.raises(
        RequestError, match=r"mine is a capture of prompts: it has no positive and negative.*capture_from_concept"
    ):
        load_contrast("mine", store=tmp_path)


def test_load_contrast_reports_load_errors(contrast_data: ContrastData, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no capture at .*mine\.pt"):
        load_contrast("mine", store=tmp_path)
    paths = engine.save_activations(contrast_data, "mine", store=tmp_path)
    paths.tensors.write_bytes(paths.tensors.read_bytes()[:100])
    with pytest.raises(StoreError, match="damaged"):
        load_contrast("mine", store=tmp_path)
    with pytest.raises(StoreError, match="is not a valid capture name"):
        load_contrast("../mine", store=tmp_path)
