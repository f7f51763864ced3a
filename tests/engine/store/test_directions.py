"""Directions on disk: bit-identical, atomic, replaced only on request, never outside the store."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

import engine
from engine.errors import StoreError
from engine.records.captures import ContrastData
from engine.records.files import METHODS, Direction
from engine.stats.direction import extract_directions
from engine.stats.methods import compare_methods
from engine.steering.vectors import export_directions
from engine.store.directions import find_directions, load_directions, save_directions
from engine.store.directions_header import path_of, read_header
from engine.store.names import locate

Directions = dict[int, Direction]


@pytest.fixture
def directions(ranked_data: ContrastData) -> Directions:
    return extract_directions(ranked_data)


def require_equal(one: Directions, other: Directions) -> None:
    """Bit-identical, in the same order."""
    assert list(one) == list(other)
    for first, second in zip(one.values(), other.values(), strict=True):
        assert first["vector"].dtype == second["vector"].dtype == torch.float32
        assert torch.equal(first["vector"], second["vector"])
        assert {k: v for k, v in first.items() if k != "vector"} == {k: v for k, v in second.items() if k != "vector"}


def turned(directions: Directions) -> Directions:
    """Different directions, to distinguish from the first."""
    out = {layer: direction.copy() for layer, direction in directions.items()}
    for direction in out.values():
        direction["vector"] = -direction["vector"]
        direction["num_pairs"] = 99
    return out


def content_of(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Vectors and header of a file, for writing it again with changes."""
    with safe_open(path, framework="pt") as file:
        keys = list(file.keys())
        return {key: file.get_tensor(key) for key in keys}, json.loads(file.metadata()["layerscope"])


@pytest.mark.parametrize("method", METHODS)
def test_they_load_bit_identical(ranked_data: ContrastData, tmp_path: Path, method: str) -> None:
    found = extract_directions(ranked_data, method)
    path = save_directions(found, "mine", store=tmp_path, leading=2)
    assert path == tmp_path / "mine.directions.safetensors"
    loaded, leading = load_directions("mine", store=tmp_path)
    require_equal(loaded, found)
    assert leading == 2
    assert loaded[0]["provenance"] == ranked_data["provenance"]


def test_a_comparison_of_methods_is_saved_with_the_directions(ranked_data: ContrastData, tmp_path: Path) -> None:
    """Older files have none, and load as before."""
    found = extract_directions(ranked_data, "auto", leading=2)
    path = save_directions(found, "mine", store=tmp_path, leading=2)
    require_equal(load_directions("mine", store=tmp_path)[0], found)
    assert read_header(path)["methods"] == compare_methods(ranked_data, 2)
    save_directions(extract_directions(ranked_data), "plain", store=tmp_path)
    assert "methods" not in load_directions("plain", store=tmp_path)[0][0]


def test_directions_that_are_not_saved_are_extracted_by_the_best_method(
    ranked_data: ContrastData, tmp_path: Path
) -> None:
    engine.save_activations(ranked_data, "mine", store=tmp_path)
    found, leading, name = find_directions("mine", store=tmp_path)
    assert (leading, name) == (engine.rank_layers(ranked_data)["layers"][0]["layer"], "mine")
    require_equal(found, extract_directions(ranked_data, "auto", leading=leading))
    named, _, _ = find_directions("mine", store=tmp_path, method="mean_diff")
    require_equal(named, extract_directions(ranked_data))


def test_layers_load_in_ascending_order(directions: Directions, tmp_path: Path) -> None:
    """Layers sort as numbers; as text, two-digit layers would come before 2."""
    many = {layer: directions[3] | {"layer": layer} for layer in (11, 2, 0, 10)}
    for direction in many.values():
        direction["vector"] = direction["vector"].clone()
    save_directions(many, "mine", store=tmp_path)
    loaded, leading = load_directions("mine", store=tmp_path)
    assert list(loaded) == [0, 2, 10, 11]
    assert leading is None


def test_directions_of_unknown_origin_can_be_saved(directions: Directions, tmp_path: Path) -> None:
    for direction in directions.values():
        direction["provenance"] = direction["concept"] = None
    save_directions(directions, "mine", store=tmp_path)
    require_equal(load_directions("mine", store=tmp_path)[0], directions)


def test_a_direction_read_along_after_loading_reads_the_same(
    ranked_data: ContrastData, directions: Directions, tmp_path: Path
) -> None:
    save_directions(directions, "mine", store=tmp_path)
    states = ranked_data["positive"][0]["activations"][2][0, -1]
    loaded = load_directions("mine", store=tmp_path)[0]
    # Not to the bit: the order of the sum depends on where the file puts the vector.
    torch.testing.assert_close(states @ loaded[2]["vector"], states @ directions[2]["vector"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["mine", "mine.pt", "mine.json", "mine.directions.safetensors"])
def test_a_path_with_or_without_suffix(directions: Directions, tmp_path: Path, name: str) -> None:
    save_directions(directions, tmp_path / "mine")
    require_equal(load_directions(tmp_path / name)[0], directions)
    require_equal(load_directions(str(tmp_path / name))[0], directions)
    require_equal(load_directions(name, store=tmp_path)[0], directions)


def test_they_are_next_to_their_capture_and_not_listed_as_one(
    ranked_data: ContrastData, directions: Directions, tmp_path: Path
) -> None:
    paths = engine.save_activations(ranked_data, "mine", store=tmp_path)
    assert save_directions(directions, paths.tensors) == path_of(paths)
    (entry,) = engine.list_captures(tmp_path)
    assert (entry.name, entry.problem) == ("mine", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.directions.safetensors", "mine.json", "mine.pt"]


def test_the_file_is_one_that_safetensors_reads(directions: Directions, tmp_path: Path) -> None:
    vectors, header = content_of(save_directions(directions, "mine", store=tmp_path, leading=1))
    assert set(vectors) == {"0", "1", "2", "3"}
    assert torch.equal(vectors["2"], directions[2]["vector"])
    assert header["layers"][2] == {
        "layer": 2,
        "negative_mean": directions[2]["negative_mean"],
        "positive_mean": directions[2]["positive_mean"],
        "norm": directions[2]["norm"],
    }
    assert {key: header[key] for key in ("schema", "leading", "capture", "method", "concept", "num_pairs")} == {
        "schema": 1,
        "leading": 1,
        "capture": "mine",
        "method": "mean_diff",
        "concept": None,
        "num_pairs": 12,
    }


def test_the_header_is_read_without_torch(directions: Directions, tmp_path: Path) -> None:
    """Uses a fresh process, because this one has imported torch."""
    path = save_directions(directions, "mine", store=tmp_path, leading=3)
    program = f"""
import sys
from pathlib import Path
from engine.store.directions_header import read_header
header = read_header(Path({str(path)!r}))
print(header["leading"], len(header["layers"]), header["provenance"]["site"])
print(sorted({{"torch", "transformers"}} & set(sys.modules)))
"""
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert child.stdout.splitlines() == ["3 4 resid_post", "[]"]


def test_directions_are_replaced_only_on_request(directions: Directions, tmp_path: Path) -> None:
    path = save_directions(directions, "mine", store=tmp_path)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"mine\.directions\.safetensors already exists.*force=True"):
        save_directions(turned(directions), "mine", store=tmp_path)
    assert path.read_bytes() == before
    save_directions(turned(directions), "mine", store=tmp_path, force=True)
    require_equal(load_directions("mine", store=tmp_path)[0], turned(directions))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.directions.safetensors"]


def test_a_capture_of_that_name_is_no_obstacle(
    ranked_data: ContrastData, directions: Directions, tmp_path: Path
) -> None:
    paths = engine.save_activations(ranked_data, "mine", store=tmp_path)
    before = paths.tensors.read_bytes(), paths.record.read_bytes()
    save_directions(directions, "mine", store=tmp_path)
    assert (paths.tensors.read_bytes(), paths.record.read_bytes()) == before


def test_an_empty_set_of_directions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(engine.LayerscopeError):
        save_directions({}, "mine", store=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../mine", "a/b", "/tmp/x", "", ".hidden", "..", "a" * 129, "a b", "x\n"])  # noqa: S108
def test_no_name_leaves_the_store(directions: Directions, tmp_path: Path, name: str) -> None:
    store = tmp_path / "inside" / "store"
    for attempt in (
        lambda: save_directions(directions, name, store=store, force=True),
        lambda: load_directions(name, store=store),
    ):
        with pytest.raises(StoreError, match="is not a valid capture name"):
            attempt()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_that_leads_out_of_the_store_is_not_followed(
    directions: Directions, tmp_path: Path, exists: bool
) -> None:
    store, outside = tmp_path / "store", tmp_path / "secret"
    store.mkdir()
    if exists:
        outside.write_text("not yours")
    (store / "mine.directions.safetensors").symlink_to(outside)
    for attempt in (
        lambda: save_directions(directions, "mine", store=store),
        lambda: save_directions(directions, "mine", store=store, force=True),
        lambda: load_directions("mine", store=store),
    ):
        with pytest.raises(StoreError, match="link out of the store"):
            attempt()
    assert outside.exists() == exists
    assert not exists or outside.read_text() == "not yours"


def test_missing_directions_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no directions at .*mine\.directions\.safetensors.*extract_directions"):
        load_directions("mine", store=tmp_path)
    with pytest.raises(StoreError, match="no directions at"):
        read_header(path_of(locate("mine", tmp_path)))


@pytest.mark.parametrize("kept", [0, 1, 8, 100, -100, -1])
def test_a_truncated_file_is_damaged(directions: Directions, tmp_path: Path, kept: int) -> None:
    path = save_directions(directions, "mine", store=tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(StoreError, match=r"mine\.directions\.safetensors is damaged: .*force=True"):
        load_directions("mine", store=tmp_path)


@pytest.mark.parametrize("content", [b"hello, this is text and no tensors", b"\x00" * 64, b"\xff" * 64, b"PK\x03\x04"])
def test_a_file_of_another_kind_is_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mine.directions.safetensors").write_bytes(content)
    with pytest.raises(StoreError, match="is damaged"):
        load_directions("mine", store=tmp_path)


def test_a_folder_of_that_name_is_damaged(directions: Directions, tmp_path: Path) -> None:
    (tmp_path / "mine.directions.safetensors").mkdir()
    with pytest.raises(StoreError, match="is a folder, not a regular file"):
        load_directions("mine", store=tmp_path)
    with pytest.raises(StoreError, match="nothing was saved"):
        save_directions(directions, "mine", store=tmp_path, force=True)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"layerscope": "{"}, {"layerscope": '{"schema": 1}'}])
def test_weights_that_layerscope_did_not_write_are_damaged(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    (tmp_path / "mine.directions.safetensors").write_bytes(save({"0": torch.ones(4)}, metadata=metadata))
    with pytest.raises(StoreError, match="is damaged"):
        load_directions("mine", store=tmp_path)


def without_a_vector(vectors: dict[str, Any], header: dict[str, Any]) -> None:  # noqa: ARG001 - one shape for all
    del vectors["2"]


def with_a_tensor_of_no_layer(vectors: dict[str, Any], header: dict[str, Any]) -> None:  # noqa: ARG001
    vectors["weight"] = torch.ones(32)


def with_a_vector_of_another_shape(vectors: dict[str, Any], header: dict[str, Any]) -> None:  # noqa: ARG001
    vectors["2"] = vectors["2"].reshape(4, 8)


def with_a_field_missing(vectors: dict[str, Any], header: dict[str, Any]) -> None:  # noqa: ARG001
    del header["num_pairs"]


def with_a_mean_missing(vectors: dict[str, Any], header: dict[str, Any]) -> None:  # noqa: ARG001
    header["layers"][0]["positive_mean"] = None


@pytest.mark.parametrize(
    "spoil",
    [
        without_a_vector,
        with_a_tensor_of_no_layer,
        with_a_vector_of_another_shape,
        with_a_field_missing,
        with_a_mean_missing,
    ],
    ids=lambda spoil: spoil.__name__,
)
def test_a_file_that_does_not_hold_what_it_says_is_refused(
    directions: Directions, tmp_path: Path, spoil: Callable[[dict[str, Any], dict[str, Any]], None]
) -> None:
    path = save_directions(directions, "mine", store=tmp_path)
    vectors, header = content_of(path)
    spoil(vectors, header)
    path.write_bytes(save(vectors, metadata={"layerscope": json.dumps(header)}))
    with pytest.raises(StoreError):
        load_directions("mine", store=tmp_path)


def test_files_of_older_versions_have_no_norm(directions: Directions, tmp_path: Path) -> None:
    path = save_directions(directions, "mine", store=tmp_path)
    vectors, header = content_of(path)
    for summary in header["layers"]:
        del summary["norm"]
    path.write_bytes(save(vectors, metadata={"layerscope": json.dumps(header)}))
    loaded = load_directions("mine", store=tmp_path)[0]
    assert [layer for layer, direction in loaded.items() if "norm" in direction] == []
    assert torch.equal(loaded[2]["vector"], directions[2]["vector"])


@pytest.mark.parametrize("changes", [{}, {"method": "one yet to be found"}])
def test_a_newer_file_is_reported_as_another_version(
    directions: Directions, tmp_path: Path, changes: dict[str, str]
) -> None:
    path = save_directions(directions, "mine", store=tmp_path)
    vectors, header = content_of(path)
    path.write_bytes(save(vectors, metadata={"layerscope": json.dumps(header | {"schema": 2} | changes)}))
    with pytest.raises(StoreError, match="by another version"):
        load_directions("mine", store=tmp_path)


SAVE_AND_DIE = """
import os, signal, sys
from pathlib import Path
from engine.store.directions import load_directions, save_directions

store, moment = sys.argv[1:]
found, _ = load_directions("mine", store=store)

def kill_at(count, function):
    calls = []
    def called(*args, **kwargs):
        calls.append(args)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return called

name, count = moment.split()
if name == "sync":
    os.fsync = kill_at(int(count), os.fsync)
else:
    Path.replace = kill_at(int(count), Path.replace)
save_directions(found, "mine", store=store, leading=3, force=True)
"""


@pytest.mark.parametrize(
    ("moment", "left"),
    [
        ("replace 1", 0),
        pytest.param("sync 1", 0, marks=pytest.mark.slow),
        pytest.param("sync 2", 3, marks=pytest.mark.slow),
    ],
)
def test_a_kill_leaves_the_old_or_the_new_directions(
    directions: Directions, tmp_path: Path, moment: str, left: int
) -> None:
    """Kill the save after writing, before the rename and after it; the leading layer tells which file is left."""
    save_directions(directions, "mine", store=tmp_path, leading=0)
    child = subprocess.run([sys.executable, "-c", SAVE_AND_DIE, str(tmp_path), moment], check=False)
    assert child.returncode == -signal.SIGKILL
    loaded, leading = load_directions("mine", store=tmp_path)
    require_equal(loaded, directions)
    assert leading == left
    assert list(engine.list_captures(tmp_path)) == []
    save_directions(turned(directions), "mine", store=tmp_path, force=True)
    require_equal(load_directions("mine", store=tmp_path)[0], turned(directions))


def test_a_full_disk_leaves_the_old_directions_and_nothing_else(directions: Directions, tmp_path: Path) -> None:
    """Simulate a full disk by limiting the child to files of 256 bytes."""
    path = save_directions(directions, "mine", store=tmp_path)
    before = path.read_bytes()
    program = """
import resource, sys, engine
found, _ = engine.load_directions("mine", store=sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (256, 256))
try:
    engine.save_directions(found, "mine", store=sys.argv[1], force=True)
except engine.LayerscopeError as error:
    print(error)
"""
    child = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "nothing was saved" in child.stdout, child.stderr
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_directions_go_when_their_capture_is_replaced(
    ranked_data: ContrastData, directions: Directions, tmp_path: Path
) -> None:
    save_directions(directions, "mine", store=tmp_path)
    engine.save_activations(ranked_data, "mine", store=tmp_path)  # the name was free: they may be of another capture
    assert path_of(locate("mine", tmp_path)).exists()
    export_directions(directions, locate("mine", tmp_path).vectors("gguf"), "gguf")
    engine.save_activations(ranked_data, "mine", store=tmp_path, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.json", "mine.pt"]


def test_control_vectors_go_when_their_directions_are_replaced(directions: Directions, tmp_path: Path) -> None:
    vectors = locate("mine", tmp_path).vectors("safetensors")
    export_directions(directions, vectors, "safetensors")
    save_directions(directions, "mine", store=tmp_path)  # nothing was replaced: they may be of other directions
    assert vectors.exists()
    save_directions(turned(directions), "mine", store=tmp_path, force=True)
    assert not vectors.exists()
