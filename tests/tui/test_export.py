"""Exports: data and figures, written atomically, replacing a file only on a second Enter."""

import csv
import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from textual.widgets import Input

from engine.errors import RequestError, StoreError
from engine.store.catalog import show_capture
from tests.tui.screen_text import wait_for
from tui.app import LayerscopeApp
from tui.exporting import Export, save_export

ROWS: list[dict[str, Any]] = [{"layer": 1, "score": 0.5}, {"layer": 2, "score": None}]


@pytest.mark.anyio
async def test_exports_the_ranking_as_data_and_as_a_figure(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store.parent)
    async with LayerscopeApp(Path(store.name), capture="small_warmth").run_test(
        size=(120, 40), notifications=True
    ) as pilot:
        await wait_for(pilot, "projections at layer 16")
        await pilot.press("r")
        for suffix in (".csv", ".json", ".png", ".svg"):
            await pilot.press("e")
            await wait_for(pilot, "Save this view as", "small_warmth.png")
            pilot.app.screen.query_one(Input).value = f"out/seen{suffix}"
            await pilot.press("enter")
            await wait_for(pilot, f"saved out/seen{suffix}")
    ranking = show_capture("small_warmth", store=store)["ranking"]
    assert ranking
    wanted = [(row["layer"], row["d_prime"], row["low"]) for row in ranking["layers"]]
    table = list(csv.DictReader((store.parent / "out" / "seen.csv").open()))
    assert [(int(row["layer"]), float(row["d_prime"]), float(row["low"])) for row in table] == wanted
    rows = json.loads((store.parent / "out" / "seen.json").read_text())
    assert [(row["layer"], row["d_prime"], row["low"]) for row in rows] == wanted
    assert (store.parent / "out" / "seen.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (store.parent / "out" / "seen.svg").read_text()


@pytest.mark.anyio
async def test_confirms_before_replacing_and_lists_the_formats(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store.parent)
    (store.parent / "mine.csv").write_text("mine")
    async with LayerscopeApp(Path(store.name)).run_test(size=(120, 40), notifications=True) as pilot:
        await wait_for(pilot, "4 captures")
        await pilot.press("e")
        await wait_for(pilot, "activations-captures.csv")
        field = pilot.app.screen.query_one(Input)
        field.value = "mine.xlsx"
        await pilot.press("enter")
        await wait_for(pilot, "has no supported suffix")
        field.value = "mine.csv"
        await pilot.press("enter")
        await wait_for(pilot, "already exists")
        assert (store.parent / "mine.csv").read_text() == "mine"
        await pilot.press("enter")
        await wait_for(pilot, "saved mine.csv")
    table = list(csv.DictReader((store.parent / "mine.csv").open()))
    assert [row["name"] for row in table] == ["small_warmth", "small_calm", "some_prompt", "small_lost"]
    assert table[3]["problem"] == "small_lost.pt is missing"


@pytest.mark.parametrize("name", ["seen.csv", "seen.json", "seen.png"])
def test_a_full_disk_keeps_the_existing_file(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    target.write_text("before")
    export = Export("seen", ROWS * 1000, _figure)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, most))
    try:
        with pytest.raises(StoreError, match="cannot be written"):
            save_export(export, target, replace=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert target.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_two_exports_of_one_file_do_not_share_a_temporary_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = list[str]()
    rename = Path.replace

    def seen(path: Path, target: Path) -> Path:
        names.append(path.name)
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", seen)
    for _ in range(2):
        save_export(Export("seen", ROWS), tmp_path / "seen.csv", replace=True)
    assert len(set(names)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["seen.csv"]


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        save_export(Export("seen", ROWS), tmp_path / "file" / "seen.csv")


def test_a_figure_of_an_export_without_one(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="has no supported suffix"):
        save_export(Export("seen", ROWS), tmp_path / "seen.png")


@pytest.mark.anyio
async def test_a_file_name_that_is_not_utf8_is_exported(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store.parent)
    (store / os.fsdecode(b"odd\xff.json")).write_text("{")
    async with LayerscopeApp(Path(store.name)).run_test(size=(120, 40), notifications=True) as pilot:
        await wait_for(pilot, "5 captures")
        await pilot.press("e")
        await wait_for(pilot, "Save this view as")
        await pilot.press("enter")
        await wait_for(pilot, "saved ")
    table = list(csv.DictReader((store.parent / "activations-captures.csv").open(encoding="utf-8")))
    assert table[-1]["name"] == r"odd\udcff"


def test_bytes_that_are_not_utf8_are_escaped_in_data(tmp_path: Path) -> None:
    rows = [{"layer": 1, "name": os.fsdecode(b"odd\xff")}]
    table = save_export(Export("seen", rows), tmp_path / "seen.csv").read_text(encoding="utf-8")
    assert table == "layer,name\n1,odd\\udcff\n"
    found = json.loads(save_export(Export("seen", rows), tmp_path / "seen.json").read_text(encoding="utf-8"))
    assert found == [{"layer": 1, "name": r"odd\udcff"}]


def _figure() -> Figure:
    figure = Figure()
    figure.add_subplot().plot([1, 2])
    return figure
