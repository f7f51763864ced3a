"""Lists of saved directions name those without a capture, wherever the store is."""

from pathlib import Path

import pytest

import engine
from engine.errors import StoreError
from engine.records.captures import ContrastData
from engine.store.delete import delete_capture
from engine.store.directions_catalog import describe_directions, directions_alone
from engine.store.ownership import origin_warning


def test_a_store_in_the_home_folder(
    contrast_data: ContrastData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    directions = engine.extract_directions(contrast_data)
    engine.save_activations(contrast_data, "mine", store="~/runs")
    for name in ("mine", "probe"):
        engine.save_directions(directions, name, store="~/runs", capture="mine")
    (alone,) = directions_alone("~/runs")
    assert alone == describe_directions(tmp_path / "runs" / "probe")
    assert (alone.name, alone.width, alone.capture) == ("probe", len(directions[0]["vector"]), "mine")


def test_directions_that_link_to_themselves_break_nothing_else(contrast_data: ContrastData, tmp_path: Path) -> None:
    engine.save_activations(contrast_data, "mine", store=tmp_path)
    for name in ("mine", "loop"):
        (tmp_path / f"{name}.directions.safetensors").symlink_to(f"{name}.directions.safetensors")
    (alone,) = directions_alone(tmp_path)
    assert (alone.name, alone.problem.endswith("is a link that cannot be followed")) == ("loop", True)
    assert origin_warning("mine", store=tmp_path) == ""
    assert [found.status for found in engine.verify_store(tmp_path)] == ["damaged", "damaged"]
    with pytest.raises(StoreError, match=r"a link that cannot be followed\. Next: remove the link"):
        engine.save_directions(engine.extract_directions(contrast_data), "mine", store=tmp_path, force=True)
    assert delete_capture("mine", store=tmp_path) == ["mine.json", "mine.pt", "mine.directions.safetensors"]
    assert delete_capture("loop", store=tmp_path) == ["loop.directions.safetensors"]
    assert list(tmp_path.iterdir()) == []
