"""Loading: what was saved comes back; damaged and hostile files are named and nothing in them is run."""

import json
import logging
import pickle
from pathlib import Path

import pytest
import torch

import engine
from engine.errors import StoreError
from engine.records.captures import ActivationData, ContrastData
from engine.store.read import describe_tensors


def test_a_contrast_comes_back_whole(contrast_data: ContrastData, tmp_path: Path) -> None:
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
    with pytest.raises(StoreError, match=r"no capture at .*mine\.pt.*layerscope list"):
        engine.load_activations("mine", store=tmp_path)


@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_a_truncated_file_is_damaged(prompt_data: ActivationData, tmp_path: Path, kept: int) -> None:
    paths = engine.save_activations(prompt_data, "mine", store=tmp_path)
    paths.tensors.write_bytes(paths.tensors.read_bytes()[:kept])
    with pytest.raises(StoreError, match=r"damaged|describes other tensors"):
        engine.load_activations("mine", store=tmp_path)
    (entry,) = engine.list_captures(tmp_path)
    assert "its record says" in entry.problem


class Hostile:
    """A pickle of this touches a file when it is read."""

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
    with pytest.raises(StoreError, match="nothing in it was run"):
        engine.load_activations("mine", store=tmp_path)
    assert not bait.exists()


def test_a_file_that_is_no_capture_is_refused(tmp_path: Path) -> None:
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
    with pytest.raises(StoreError, match="describes other tensors"):
        engine.load_activations("mine", store=tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged: Expected `object`"),
        ('{"schema": 1}', "missing required field"),
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


def test_a_record_of_the_future_is_refused(prompt_data: ActivationData, tmp_path: Path) -> None:
    paths = engine.save_activations(prompt_data, "mine", store=tmp_path)
    record = json.loads(paths.record.read_text())
    paths.record.write_text(json.dumps(record | {"schema": 99}))
    with pytest.raises(StoreError, match=r"has schema 99\. Expected: schema 1"):
        engine.load_activations("mine", store=tmp_path)


def test_tensors_that_came_alone_are_read_with_a_warning(
    prompt_data: ActivationData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = engine.save_activations(prompt_data, "mine", store=tmp_path)
    statistics = json.loads(paths.record.read_text())["statistics"]
    paths.record.unlink()
    with caplog.at_level(logging.WARNING):
        assert "provenance" not in engine.load_activations("mine", store=tmp_path)
    assert "provenance and factors are unknown" in caplog.text
    assert json.loads(json.dumps(describe_tensors(paths.tensors)["statistics"])) == statistics
