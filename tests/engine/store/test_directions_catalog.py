"""Lists of saved directions name those without a capture, wherever the store is."""

from pathlib import Path

import pytest

import engine
from engine.records.captures import ContrastData
from engine.store.directions_catalog import describe_directions, directions_alone


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
