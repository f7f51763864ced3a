"""Loading returns what was saved; damaged and malicious files are refused and run no code."""

import io
import json
import logging
import os
import pickle
import re
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
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
    with pytest.raises(StoreError, match=r"does not match the tensors|is damaged: its? (statistics|does not have)"):
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


def saved(content: object) -> bytes:
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


def rewritten(archive: bytes, compression: int = zipfile.ZIP_STORED, **contents: bytes) -> bytes:
    """An archive of `torch.save`, packed again, some of its entries with other contents."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as before, zipfile.ZipFile(out, "w", compression) as after:
        for entry in before.infolist():
            name = entry.filename.rpartition("/")[2].replace(".", "_")
            after.writestr(entry.filename, contents.get(name, before.read(entry)))
    return out.getvalue()


def flood(code: bytes, count: int = 3_000_000) -> bytes:
    return rewritten(saved({}), data_pkl=b"\x80\x02" + code * count + b".")


def twice(archive: bytes) -> bytes:
    out = io.BytesIO(archive)
    with warnings.catch_warnings(), zipfile.ZipFile(out, "a") as file:
        warnings.simplefilter("ignore")  # the name is there twice on purpose
        file.writestr(file.namelist()[0], b"")
    return out.getvalue()


BYTEARRAY = b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\x00\xe4\x0b\x54\x02\x85R."

HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "compressed": (lambda: rewritten(saved(torch.zeros(2**20)), zipfile.ZIP_DEFLATED), "its entries are compressed"),
    "legacy": (lambda: pickle.dumps({"positive": []}), "it is not a zip archive"),
    "empty": (lambda: b"", "it is not a zip archive"),
    "two entries of one name": (lambda: twice(saved({})), "its entries overlap"),
    "two pickles": (
        lambda: saved({}).replace(b"archive/version", b"archive/bla.pkl").replace(b"version", b"bla.pkl"),
        "it has 3 pickles",
    ),
    "marks": (lambda: flood(b"("), "needs far more memory than its tensors"),
    "lists": (lambda: flood(b"]"), "needs far more memory than its tensors"),
    "nesting": (lambda: rewritten(saved({}), data_pkl=b"\x80\x02" + b"]" * 9999 + b"a" * 9998 + b"."), "not a capture"),
    "unbalanced": (lambda: rewritten(saved({}), data_pkl=b"\x80\x02aaa."), "is damaged"),
    "no end": (lambda: rewritten(saved({}), data_pkl=b"\x80\x02]"), "its pickle is truncated"),
    "long text": (lambda: rewritten(saved({}), data_pkl=b"\x80\x02X\xff\xff\xff\x7f."), "its pickle is truncated"),
    "ten gigabytes": (lambda: rewritten(saved({}), data_pkl=BYTEARRAY), "its pickle names b'__builtin__"),
    "other opcode": (lambda: rewritten(saved({}), data_pkl=b"\x80\x02I5\n."), "its pickle has the opcode b'I'"),
    "bytes": (lambda: saved({"activations": b"abc"}), "its pickle names b'_codecs"),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_hostile_archive_is_refused_within_bounded_memory(tmp_path: Path) -> None:
    for kind, (make, said) in HOSTILE.items():
        (tmp_path / "mine.pt").write_bytes(make())
        with pytest.raises(StoreError, match=re.escape(said)):
            engine.load_activations("mine", store=tmp_path)
        (tmp_path / "mine.pt").unlink()
        assert kind


def test_a_checksum_is_checked_before_anything_is_unpickled(prompt_data: ActivationData, tmp_path: Path) -> None:
    paths = engine.save_activations(prompt_data, "mine", store=tmp_path)
    paths.tensors.write_bytes(saved({"not": "a capture"}))
    with pytest.raises(StoreError, match="does not match the tensors"):
        engine.load_activations("mine", store=tmp_path)


WRONG: dict[str, Callable[[dict[Any, Any], dict[Any, Any]], object]] = {
    "a list": lambda _p, _c: [],
    "no field": lambda p, _c: {key: p[key] for key in p if key != "tokens"},
    "states in a list": lambda p, _c: p | {"activations": [*p["activations"].values()]},
    "names for layers": lambda p, _c: p | {"activations": {str(k): v for k, v in p["activations"].items()}},
    "a layer too few": lambda p, _c: p | {"activations": {0: p["activations"][0]}},
    "no layers": lambda p, _c: p | {"activations": {}, "captured_layers": []},
    "a layer twice": lambda p, _c: p | {"captured_layers": [0, 0, 1, 2]},
    "true for a layer": lambda p, _c: p | {"captured_layers": [0, True, 2, 3]},
    "fewer layers in the model": lambda p, _c: p | {"num_layers": 2},
    "expanded": lambda p, _c: p | {"activations": dict.fromkeys(range(4), torch.zeros(1).expand(1, 10**9, 10**6))},
    "empty": lambda p, _c: p | {"activations": dict.fromkeys(range(4), torch.zeros(1, 0, 32))},
    "two dimensions": lambda p, _c: p | {"activations": dict.fromkeys(range(4), torch.zeros(3, 32))},
    "whole numbers": lambda p, _c: p | {"activations": dict.fromkeys(range(4), torch.zeros(1, 3, 32).long())},
    "other widths": lambda p, _c: p | {"activations": {i: torch.zeros(1, 3, 32 + i) for i in range(4)}},
    "a text for a state": lambda p, _c: p | {"activations": p["activations"] | {3: "w5"}},
    "floating token ids": lambda p, _c: p | {"input_ids": p["input_ids"].float()},
    "a batch of token ids": lambda p, _c: p | {"input_ids": p["input_ids"].expand(2, -1).clone()},
    "another mask": lambda p, _c: p | {"attention_mask": torch.ones(1, 9, dtype=torch.int64)},
    "a number for a token": lambda p, _c: p | {"tokens": ["w5", 6, "w7"]},
    "a number for a prompt": lambda p, _c: p | {"prompt": 5},
    "prompts too many": lambda p, _c: p | {"prompt": ["w5", "w6"]},
    "rows of tokens too many": lambda p, _c: p | {"prompt": ["w5"], "tokens": [["w5"], ["w6"]]},
    "a class too small": lambda _p, c: c | {"positive": c["positive"][:1]},
    "no pairs": lambda _p, c: c | {"positive": [], "negative": [], "num_pairs": 0},
    "a number for a concept": lambda _p, c: c | {"concept": 5},
    "no list": lambda _p, c: c | {"negative": {}},
    "nested": lambda _p, c: c | {"negative": [c, c]},
    "layers of its own": lambda p, c: c | {"negative": [p, {**p, "captured_layers": [0]}]},
    "a batch in a pair": lambda p, c: c | {"negative": [batch_of_two(p)] * 2},
}


def batch_of_two(data: dict[Any, Any]) -> dict[Any, Any]:
    states = {layer: one.repeat(2, 1, 1) for layer, one in data["activations"].items()}
    texts = {"prompt": ["a", "b"], "tokens": [["a"], ["b"]]}
    return data | texts | {"activations": states, "input_ids": data["input_ids"].repeat(2, 1)}


def test_what_is_not_a_capture_is_refused(
    prompt_data: ActivationData, contrast_data: ContrastData, tmp_path: Path
) -> None:
    path = tmp_path / "mine.pt"
    prompts, contrast = ({**data} for data in (prompt_data, contrast_data))
    for content in (prompts, contrast, batch_of_two(prompts)):
        torch.save(content, path)
        assert engine.load_activations("mine", store=tmp_path).keys() == content.keys() - {"provenance", "factors"}
    for kind, change in WRONG.items():
        torch.save(change(prompts, contrast), path)
        with pytest.raises(StoreError, match="is not a capture"):
            pytest.fail(f"{kind}: {engine.load_activations('mine', store=tmp_path)}")


def test_a_linked_or_irregular_file_is_not_loaded(prompt_data: ActivationData, tmp_path: Path) -> None:
    engine.save_activations(prompt_data, tmp_path / "outside")
    store = tmp_path / "store"
    store.mkdir()
    (store / "mine.pt").symlink_to(tmp_path / "outside.pt")
    with pytest.raises(StoreError, match="symbolic link out of the store"):
        engine.load_activations("mine", store=store)
    os.mkfifo(store / "pipe.pt")
    with pytest.raises(StoreError, match="is a named pipe"):
        engine.load_activations("pipe", store=store)
    with pytest.raises(StoreError, match="is a named pipe"):
        describe_tensors(store / "pipe.pt")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the limit is set from the memory in use")
def test_too_little_memory_is_said_plainly(tmp_path: Path) -> None:
    """In a process of its own, because memory that other tests have freed would serve."""
    torch.save({"activations": {0: torch.zeros(1, 2**18, 256)}}, tmp_path / "mine.pt")
    code = f"""
        import engine, engine.store.read, resource, torch
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20, used + 100 * 2**20))
        engine.load_activations("mine", store={str(tmp_path)!r})
    """
    ended = subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True, text=True, check=False)
    assert re.search(r"MemoryError: there is not enough memory to load .*mine\.pt", ended.stderr), ended.stderr
