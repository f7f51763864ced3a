"""One damaged entry of a store never hides the others: it is listed with the reason, and can be deleted."""

import json
import os
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

import engine
from engine.errors import StoreError
from engine.records.captures import ActivationData, ContrastData
from engine.store.catalog import list_captures, show_capture, unfinished_saves
from engine.store.delete import delete_capture
from engine.store.summaries import stamp_store, summarise_capture

Damage = Callable[[bytes], bytes]


def changed(**fields: object) -> Damage:
    return lambda content: json.dumps(json.loads(content) | fields).encode()


DAMAGE: dict[str, tuple[Damage, str]] = {
    "flipped byte": (lambda content: content.replace(b'"name"', b'"na\xffe"', 1), "damaged"),
    "not UTF-8": (lambda content: content.replace(b'"w5 ', b'"\xff5 ', 1), "damaged"),
    "nesting": (lambda content: content.replace(b'"schema"', b'"x": ' + b"[" * 50_000 + b', "schema"', 1), "damaged"),
    "schema of 400 digits": (lambda content: content.replace(b'"schema": 3', b'"schema": ' + b"9" * 400, 1), "damaged"),
    "schema of 9000 digits": (
        lambda content: content.replace(b'"schema": 3', b'"schema": ' + b"9" * 9000, 1),
        "damaged",
    ),
    "pairs of 400 digits": (changed(num_pairs=10**400), "damaged"),
    "score of 300 digits": (lambda content: content.replace(b'"std": ', b'"std": 1e300, "ignored": ', 1), "damaged"),
    "nulls": (lambda content: b"\0" * len(content), "damaged"),
    "lone surrogate": (changed(concept="\ud800"), "damaged"),
    "no layers": (changed(captured_layers=[]), "its layers are not ascending"),
    "layers of another model": (changed(captured_layers=[0, 1, 2, 30]), "its layers are not ascending"),
    "no statistics": (changed(statistics=[]), "its statistics do not match"),
    "differences of no pairs": (
        lambda content: re.sub(rb'"cosine_sim": [-0-9.e]+', b'"cosine_sim": null', content, count=1),
        "its statistics do not match its ranking",
    ),
    "prompts that are pairs": (changed(kind="prompt"), "as many negative as positive"),
    "a prompt too many": (changed(prompts=["w5"] * 13), "as many negative as positive"),
    "a factor too many": (changed(factors=[{"template": "", "persona": "", "topic": ""}]), "as many factors as pairs"),
    "another schema": (changed(schema=2), "has schema 2"),
}


def in_ranking(content: bytes, **fields: object) -> bytes:
    record = json.loads(content)
    return json.dumps(record | {"ranking": record["ranking"] | fields}).encode()


RANKINGS: dict[str, tuple[Damage, str]] = {
    "ranking without layers": (lambda content: in_ranking(content, layers=[]), "its ranking does not match"),
    "ranking without margins": (lambda content: in_ranking(content, margins=[]), "its ranking is incomplete"),
    "histogram of no layer": (
        lambda content: json.dumps(
            (record := json.loads(content)) | {"sides": [side | {"layer": 9} for side in record["sides"]]}
        ).encode(),
        "its histograms do not match",
    ),
    "pair without texts": (
        lambda content: json.dumps(
            (record := json.loads(content))
            | {"sides": [side | {"wrong": [{"pair": 99, "gap": -1.0}]} for side in record["sides"]]}
        ).encode(),
        "it lacks the texts",
    ),
}


def require_listed_and_deletable(store: Path, name: str, said: str) -> None:
    """Every function shows the damage under this name and the healthy capture "good"; then it can be deleted."""
    entries = list_captures(store)
    assert [entry.name for entry in entries if entry.record] == ["good"]
    assert {entry.name: said in entry.problem for entry in entries if not entry.record} == {name: True}
    assert [entry["name"] for entry in json.loads(msgspec.json.encode(entries))] == ["good", name]
    assert {stamp.name for stamp in stamp_store(store)} == {"good", name}
    assert summarise_capture("good", store).problem == ""
    assert summarise_capture(name, store).name == name
    if not name.startswith("good."):  # "good.pt.pt" leads to "good"
        with pytest.raises(StoreError):
            show_capture(name, store=store)
    assert unfinished_saves(store) == []
    assert delete_capture(name, store=store)
    assert [entry.name for entry in list_captures(store)] == ["good"]
    assert "positive" in engine.load_activations("good", store=store)


def test_a_damaged_record_hides_no_other_and_can_be_deleted(ranked_data: ContrastData, tmp_path: Path) -> None:
    good = engine.save_activations(ranked_data, "good", store=tmp_path)
    content = good.record.read_bytes()
    for damage, said in (DAMAGE | RANKINGS).values():
        assert damage(content) != content
        (tmp_path / "bad.pt").write_bytes(good.tensors.read_bytes())
        (tmp_path / "bad.json").write_bytes(damage(content))
        require_listed_and_deletable(tmp_path, "bad", said)


def test_a_record_larger_than_any_capture_needs_is_not_read(contrast_data: ContrastData, tmp_path: Path) -> None:
    engine.save_activations(contrast_data, "good", store=tmp_path)
    with (tmp_path / "bad.json").open("wb") as file:
        file.truncate(300 << 20)
    require_listed_and_deletable(tmp_path, "bad", "too large for a record")


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(path))


def make_link_to_nothing(path: Path) -> None:
    path.symlink_to("nowhere")


def make_link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def make_link_out(path: Path) -> None:
    outside = path.parent.parent / "outside"
    outside.write_text("{}")
    path.symlink_to(outside)


KINDS: dict[str, Callable[[Path], object]] = {
    "a named pipe": make_pipe,
    "a socket": make_socket,
    "a folder": Path.mkdir,
    "a link to a file that does not exist": make_link_to_nothing,
    "link": make_link_to_itself,
    "a symbolic link out of the store": make_link_out,
}


def test_what_is_not_a_regular_file_is_listed_and_deleted(
    contrast_data: ContrastData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    store = tmp_path / "store"
    engine.save_activations(contrast_data, "good", store=store)
    for said, make in KINDS.items():
        make(store / "bad.pt")
        require_listed_and_deletable(store, "bad", said)
        make(store / "bad.json")
        require_listed_and_deletable(store, "bad", "cannot be read" if "socket" in said else said)
    assert (tmp_path / "outside").exists()


NAMES = {
    b"a\xff.json": r"a\udcff",
    b"a\x1b[31m.json": r"a\x1b[31m",
    b"a\nb.pt": r"a\nb",
    b"a\\nb.pt": r"a\\nb",
    b"a b.json": "a b",
    "\N{GRINNING FACE}.json".encode(): "\N{GRINNING FACE}",
    b"good.pt.pt": "good.pt.pt",
    b"good.json.json": "good.json.json",
    b"-x.pt": "-x",
}


def test_a_name_that_no_capture_can_have_is_listed_and_deleted(contrast_data: ContrastData, tmp_path: Path) -> None:
    engine.save_activations(contrast_data, "good", store=tmp_path)
    for file_name, shown in NAMES.items():
        if b"\xff" in file_name and sys.platform == "darwin":  # refuses names that are not UTF-8
            continue
        path = tmp_path / os.fsdecode(file_name)
        path.write_bytes((tmp_path / "good.json").read_bytes())
        require_listed_and_deletable(tmp_path, shown, "is not a valid capture name")
        assert not path.exists()


def test_a_capture_goes_by_the_name_of_its_files(prompt_data: ActivationData, tmp_path: Path) -> None:
    paths = engine.save_activations(prompt_data, "claimed", store=tmp_path)
    for path in (paths.record, paths.tensors):
        path.rename(path.with_stem("mine"))
    (entry,) = list_captures(tmp_path)
    assert entry.name == "mine"
    assert entry.record is not None
    assert (entry.record["name"], entry.record["data"]["name"]) == ("mine", "mine.pt")
    assert show_capture("mine", store=tmp_path)["name"] == "mine"


def test_damage_to_shards_is_listed_and_deleted(contrast_data: ContrastData, tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(b"")
    store = tmp_path / "store"
    engine.save_activations(contrast_data, "good", store=store)
    for said in ("a named pipe", "a link to a file that does not exist", "a symbolic link out of the store"):
        (store / "bad").mkdir()
        (store / "bad" / "plan.json").write_bytes(b"\xff")
        shard = store / "bad" / "000000000000.safetensors"
        if said.endswith("out of the store"):
            shard.symlink_to(outside)
        else:
            KINDS[said](shard)
        require_listed_and_deletable(store, "bad", said)
    (store / "bad").mkdir()
    make_pipe(store / "bad" / "plan.json")
    require_listed_and_deletable(store, "bad", "unfinished")
    (store / "bad").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "plan.json").write_text("{}")
    (tmp_path / "elsewhere" / ".mine.unfinished").touch()
    require_listed_and_deletable(store, "bad", "a symbolic link out of the store")
    assert (tmp_path / "elsewhere" / "plan.json").exists()
    assert outside.exists()


def test_the_files_of_others_are_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    for name in ("plan.json", "thesis.txt"):
        (tmp_path / "bad" / name).write_text("mine")
    with pytest.raises(StoreError, match="holds files that are not shards"):
        delete_capture("bad", store=tmp_path)
    (tmp_path / "full.json").mkdir()
    (tmp_path / "full.json" / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"full\.json cannot be deleted.*delete it yourself"):
        delete_capture("full", store=tmp_path)
    assert len([*tmp_path.rglob("thesis.txt")]) == 2
