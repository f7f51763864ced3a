"""Checking a store: every byte that is covered, what is not, and what is wrong."""

import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load, save
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.errors import StoreError
from engine.records.captures import ActivationData, ContrastData
from engine.store.names import locate
from engine.store.unfinished import clean_store, unfinished
from engine.store.verify import has_checksums
from tests.program import unprivileged


@pytest.fixture
def store(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    prompt_data: ActivationData,
    contrast_data: ContrastData,
    tmp_path: Path,
) -> Path:
    """A store with one capture of each kind, and directions."""
    path = tmp_path / "prompts.txt"
    path.write_text("w5 w6\nw7 w8")
    folder = tmp_path / "store"
    engine.capture_prompt_file(tiny_llama, tiny_tokenizer, path, "parts", store=folder)
    engine.save_activations(prompt_data, "whole", store=folder)
    engine.save_directions(engine.extract_directions(contrast_data), "alone", store=folder)
    return folder


def statuses(store: Path) -> dict[str, str]:
    return {found.name: found.status for found in engine.verify_store(store)}


def problem(name: str, store: Path) -> str:
    found = engine.verify_capture(name, store=store)
    assert found.status == "damaged"
    assert statuses(store).pop(name) == "damaged"
    assert sum(status != "ok" for status in statuses(store).values()) == 1
    return found.problem


def flip(path: Path, place: int = -3) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 64
    path.write_bytes(content)


SHARD = "parts/000000000000.safetensors"


def test_a_sound_store_is_ok(store: Path) -> None:
    assert statuses(store) == {"alone": "ok", "parts": "ok", "whole": "ok"}


@pytest.mark.parametrize(
    ("file", "name", "said"),
    [
        (SHARD, "parts", "does not match its checksum"),
        ("parts/plan.json", "parts", "plan.json does not match the checksum in parts.json"),
        ("whole.pt", "whole", "whole.pt does not match the checksum in whole.json"),
        ("alone.directions.safetensors", "alone", "does not match its checksum"),
    ],
)
def test_a_flipped_bit_is_found_and_the_others_are_ok(store: Path, file: str, name: str, said: str) -> None:
    flip(store / file)
    assert said in problem(name, store)


def test_what_is_missing_cut_or_unreadable_is_damaged(store: Path) -> None:
    record = store / "whole.json"
    content = record.read_bytes()
    record.unlink()
    assert "it has no record" in problem("whole", store)
    record.write_bytes(content[:100])
    assert "whole.json is damaged" in problem("whole", store)
    record.write_bytes(content)
    (store / "whole.pt").unlink()
    assert "whole.pt is missing" in problem("whole", store)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has other permissions")
@pytest.mark.parametrize("file", ["whole.json", "whole.pt", "alone.directions.safetensors", SHARD])
def test_a_file_that_the_user_may_not_read_is_not_damaged(store: Path, file: str) -> None:
    (store / file).chmod(0)
    with unprivileged(store):
        found = [one for one in engine.verify_store(store) if one.status != "ok"]
    assert [one.status for one in found] == ["unreadable"]
    assert f"{file} cannot be read: Permission denied" in found[0].problem


def test_files_from_before_checksums_are_unverified(store: Path) -> None:
    size = (store / SHARD).stat().st_size
    content = save(load((store / SHARD).read_bytes()))
    (store / SHARD).write_bytes(content)
    record = json.loads((store / "parts.json").read_text())
    record["data"]["bytes"] += len(content) - size
    (store / "parts.json").write_text(json.dumps(record))
    found = engine.verify_capture("parts", store=store)
    assert (found.status, found.problem) == ("unverified", "1 of 1 shards: saved without checksums")
    assert not has_checksums(locate("parts", store))
    record = json.loads((store / "whole.json").read_text())
    record["data"]["sha256"] = ""
    (store / "whole.json").write_text(json.dumps(record))
    assert statuses(store) == {"alone": "ok", "parts": "unverified", "whole": "unverified"}


def test_unfinished_shards_are_checked_too(store: Path) -> None:
    (store / "parts.json").unlink()
    found = engine.verify_capture("parts", store=store)
    assert (found.status, found.problem) == (
        "unfinished",
        "1 shard saved so far; run the same capture again under this name to resume",
    )
    flip(store / SHARD)
    assert "does not match its checksum" in problem("parts", store)


def test_a_name_that_is_not_there_is_an_error(store: Path) -> None:
    with pytest.raises(StoreError, match="there is no capture called 'nothing'"):
        engine.verify_capture("nothing", store=store)
    with pytest.raises(StoreError, match="cannot be read"):
        engine.verify_store(store / "nothing")


def test_a_file_with_a_name_that_no_capture_can_have_is_damaged(store: Path) -> None:
    (store / "a b.json").write_text("{}")
    assert statuses(store)["a b"] == "damaged"


def test_cleaning_deletes_what_killed_saves_left_and_nothing_else(store: Path) -> None:
    left = [store / ".whole.pt.1a2b3c4d.unfinished", store / "parts" / ".000000000000.safetensors.1a2b3c4d.unfinished"]
    for path in left:
        path.touch()
    (store / ".link.unfinished").symlink_to(store / "whole.pt")
    with unfinished(store / "new.pt") as running:
        assert sorted(clean_store(store)) == sorted(left)
        assert running.path.exists()
    assert clean_store(store) == []
    assert statuses(store) == {"alone": "ok", "parts": "ok", "whole": "ok"}
