"""Control vectors: exported as other readers expect, imported at the right layer, hostile files refused."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import safetensors.numpy
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

import engine
from engine.errors import LayerscopeError, RequestError, StoreError
from engine.records.files import Direction
from engine.remedies import Remedy
from tests.engine.stats.contrasts import capture_of, planted
from tests.engine.steering.foreign_files import (
    BLOCKS,
    WIDTH,
    vector,
    write_gguf,
    write_mean_diffs,
    write_persona_vectors,
    write_refusal_direction,
)

Array = NDArray[np.floating]


def direction_at(layer: int, *, norm: float | None = 50.0) -> Direction:
    values = torch.from_numpy(vector(layer))
    direction = Direction(
        layer=layer,
        vector=values / values.norm(),
        negative_mean=-1.0,
        positive_mean=3.0,
        method="mean_diff",
        concept="loudness",
        num_pairs=4,
        provenance=None,
    )
    if norm is not None:
        direction["norm"] = norm + layer
    return direction


def some_directions() -> dict[int, Direction]:
    return {layer: direction_at(layer) for layer in range(BLOCKS)}


def unit(values: Array) -> Array:
    return values / np.linalg.norm(values)


def assert_layers(found: dict[int, Direction], expected: dict[int, Array]) -> None:
    """Check layers, vectors and lengths."""
    assert list(found) == sorted(expected)
    for layer, values in expected.items():
        direction = found[layer]
        assert direction["layer"] == layer
        assert direction["vector"].dtype == torch.float32
        np.testing.assert_allclose(direction["vector"].numpy(), unit(values), atol=1e-6)
        assert direction["positive_mean"] == pytest.approx(np.linalg.norm(values))
        assert (direction["negative_mean"], direction["method"]) == (0, "imported")


# Export


def test_a_gguf_is_what_its_own_reader_expects(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directions = some_directions()
    path = engine.export_directions(directions, tmp_path / "loud.gguf", "gguf")
    assert [record.message for record in caplog.records] == ["layer 0 was left out: llama.cpp cannot steer block 0"]
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "controlvector"
    assert fields["controlvector.layer_count"] == BLOCKS - 1
    assert fields["controlvector.model_hint"] == "unknown"
    assert "strength 1 is the mean norm of the states" in fields["general.description"]
    assert [tensor.name for tensor in reader.tensors] == [f"direction.{layer}" for layer in range(1, BLOCKS)]
    for layer, tensor in enumerate(reader.tensors, start=1):
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        assert tensor.shape.tolist() == [WIDTH]
        np.testing.assert_allclose(tensor.data, (50 + layer) * unit(vector(layer)), rtol=1e-5)


@pytest.mark.parametrize(("unit_name", "scales"), [("norm", [50, 51, 52, 53]), ("gap", [4] * 4), ("raw", [1] * 4)])
@pytest.mark.parametrize("file_format", ["safetensors", "npz"])
def test_arrays_are_scaled_and_keep_layer_0(
    tmp_path: Path, unit_name: str, scales: list[float], file_format: str
) -> None:
    path = engine.export_directions(some_directions(), tmp_path / f"loud.{file_format}", unit=unit_name)
    read = safetensors.numpy.load_file(path) if file_format == "safetensors" else dict(np.load(path))
    assert sorted(read) == [f"direction.{layer}" for layer in range(BLOCKS)]
    for layer, scale in enumerate(scales):
        assert read[f"direction.{layer}"].dtype == np.float32
        np.testing.assert_allclose(read[f"direction.{layer}"], scale * unit(vector(layer)), rtol=1e-5)


def test_the_suffix_sets_the_format_in_any_case(tmp_path: Path) -> None:
    path = engine.export_directions(some_directions(), tmp_path / "loud.NPZ")
    assert sorted(np.load(path)) == [f"direction.{layer}" for layer in range(BLOCKS)]


def test_safetensors_say_what_the_vectors_are(tmp_path: Path) -> None:
    path = engine.export_directions(some_directions(), tmp_path / "loud.safetensors", "safetensors", unit="gap")
    with safetensors.safe_open(path, framework="np") as file:
        about = file.metadata()
    assert (about["unit"], about["concept"], about["method"]) == ("gap", "loudness", "mean_diff")
    assert "strength 1 is the distance between the class means" in about["description"]


def test_a_direction_has_the_mean_norm_of_both_classes() -> None:
    (positive, negative), *_ = planted(np.random.default_rng(0), [3.0], 12)
    norms = np.linalg.norm(np.concatenate([positive, negative]), axis=1)
    found = engine.extract_direction(capture_of([(positive, negative)], None), 0)
    assert found["norm"] == pytest.approx(norms.mean(), rel=1e-6)


def test_existing_files_are_replaced_only_on_request(tmp_path: Path) -> None:
    target = tmp_path / "loud.npz"
    target.write_bytes(b"mine")
    with pytest.raises(StoreError, match="already exists"):
        engine.export_directions(some_directions(), target, "npz")
    assert target.read_bytes() == b"mine"
    assert len(np.load(engine.export_directions(some_directions(), target, "npz", force=True))) == BLOCKS


def test_directions_without_a_norm_are_refused_in_units_of_it(tmp_path: Path) -> None:
    old = {1: direction_at(1, norm=None)}
    with pytest.raises(RequestError, match="the norm of the states at layer 1 is not known") as refused:
        engine.export_directions(old, tmp_path / "old.gguf")
    assert refused.value.next_step == Remedy.EXTRACT_AGAIN
    assert [*tmp_path.iterdir()] == []
    assert engine.export_directions(old, tmp_path / "old.gguf", unit="gap").exists()


@pytest.mark.parametrize(
    ("layers", "arguments", "said"),
    [
        ([1], {"format": "ggfu"}, "did you mean 'gguf'"),
        ([1], {"unit": "norms"}, "did you mean 'norm'"),
        ([0], {}, "llama.cpp cannot steer block 0"),
        ([], {}, "no directions to export"),
    ],
)
def test_what_cannot_be_exported(tmp_path: Path, layers: list[int], arguments: dict[str, str], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        engine.export_directions({layer: direction_at(layer) for layer in layers}, tmp_path / "x.gguf", **arguments)  # type: ignore[arg-type]
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("name", "file_format", "known"),
    [
        ("x.exe", None, ".gguf, .safetensors, .npz"),
        ("x", None, ".gguf, .safetensors, .npz"),
        ("x.exe", "npz", ".npz"),
        ("x.gguf", "npz", ".npz"),
        (".npz", "npz", ".npz"),
    ],
)
def test_the_suffix_must_name_the_format(tmp_path: Path, name: str, file_format: str | None, known: str) -> None:
    with pytest.raises(RequestError, match=rf"{name!r} is not the name of .* ending in {known}\.$"):
        engine.export_directions(some_directions(), tmp_path / name, file_format)
    assert [*tmp_path.iterdir()] == []


def test_directions_of_another_site_are_not_control_vectors(tmp_path: Path) -> None:
    direction = direction_at(1)
    direction["provenance"] = {"site": "attn_out"}  # type: ignore[typeddict-item]  # the rest is not read
    with pytest.raises(RequestError, match="come from the site attn_out"):
        engine.export_directions({1: direction}, tmp_path / "x.gguf")


# Import: the layer numbers of each tool


def test_an_exported_gguf_comes_back(tmp_path: Path, tiny_llama: PreTrainedModel) -> None:
    directions = some_directions()
    path = engine.export_directions(directions, tmp_path / "loud.gguf")
    found = engine.import_directions(path, "llama.cpp", model=tiny_llama)
    assert_layers(found, {layer: (50 + layer) * unit(vector(layer)) for layer in range(1, BLOCKS)})
    assert [direction["norm"] for direction in found.values()] == pytest.approx([51, 52, 53])
    assert found[2]["concept"] == "loudness"
    assert found[2]["imported"]["file"] == "loud.gguf"
    raw = engine.export_directions(directions, tmp_path / "raw.gguf", unit="raw")
    assert "norm" not in engine.import_directions(raw, "llama.cpp", model=tiny_llama)[2]


@pytest.mark.parametrize(
    ("origin", "numbers", "layers"),
    [
        ("llama.cpp", [1, 2, 3], [1, 2, 3]),
        ("llama.cpp-generator", [1, 2, 3], [0, 1, 2]),
        ("llama.cpp-generator", [4], [3]),
        ("repeng", [1, 2, 3], [1, 2]),
    ],
)
def test_layers_of_gguf_files(
    tmp_path: Path, tiny_llama: PreTrainedModel, origin: str, numbers: list[int], layers: list[int]
) -> None:
    path = write_gguf(tmp_path / "v.gguf", {f"direction.{number}": vector(number) for number in numbers})
    found = engine.import_directions(path, origin, model=tiny_llama)
    assert_layers(found, {layer: vector(number) for layer, number in zip(layers, numbers, strict=False)})
    assert all("norm" not in direction for direction in found.values())


def test_layers_of_persona_vectors(
    tmp_path: Path, tiny_llama: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    rows = write_persona_vectors(tmp_path / "evil_response_avg_diff.pt")
    found = engine.import_directions(tmp_path / "evil_response_avg_diff.pt", "persona-vectors", model=tiny_llama)
    assert_layers(found, {0: rows[1], 1: rows[2], 2: rows[3]})
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [
        "the vector of the embeddings was left out: it is not the output of a block",
        "the vector of the last block was left out: persona-vectors reads it after the final norm",
    ]


def test_the_layer_of_a_refusal_direction(tmp_path: Path, tiny_llama: PreTrainedModel) -> None:
    values = write_refusal_direction(tmp_path, layer=3)
    found = engine.import_directions(tmp_path / "direction.pt", "refusal-direction", model=tiny_llama)
    assert_layers(found, {2: values})


def test_the_layers_of_mean_diffs(tmp_path: Path, tiny_llama: PreTrainedModel) -> None:
    values = write_mean_diffs(tmp_path / "mean_diffs.pt")
    found = engine.import_directions(tmp_path / "mean_diffs.pt", "refusal-direction", model=tiny_llama)
    assert_layers(found, {0: values[-1, 1], 1: values[-1, 2], 2: values[-1, 3]})


@pytest.mark.parametrize(("origin", "layer"), [(None, 2), ("llama.cpp", 2), ("persona-vectors", 1), ("repeng", 2)])
@pytest.mark.parametrize("kind", ["numpy", "torch", "list"])
def test_a_dictionary_counts_layers_as_its_tool(
    tiny_llama: PreTrainedModel, origin: str | None, layer: int, kind: str
) -> None:
    given = {"numpy": vector(2), "torch": torch.from_numpy(vector(2)).half(), "list": vector(2).tolist()}[kind]
    found = engine.import_directions({2: given}, origin, model=tiny_llama)
    assert list(found) == [layer]
    np.testing.assert_allclose(found[layer]["vector"].numpy(), unit(vector(2)), atol=1e-3)


def test_imports_are_saved_and_read_with_their_origin(tmp_path: Path, tiny_llama: PreTrainedModel) -> None:
    path = write_gguf(tmp_path / "v.gguf", {"direction.2": vector(2)})
    own = some_directions()
    found = engine.import_directions(path, "llama.cpp", model=tiny_llama, own=own)
    assert found[2]["norm"] == 52
    engine.save_directions(found, "loud", store=tmp_path)
    loaded, leading = engine.load_directions("loud", store=tmp_path)
    assert leading is None
    assert torch.equal(loaded[2]["vector"], found[2]["vector"])
    assert dict(loaded[2]) | {"vector": None} == dict(found[2]) | {"vector": None}
    assert engine.direction_cosines(loaded, own)[2] == pytest.approx(1, abs=1e-6)


def test_zero_vectors_are_left_out(tiny_llama: PreTrainedModel, caplog: pytest.LogCaptureFixture) -> None:
    found = engine.import_directions({1: np.zeros(WIDTH), 2: vector(2)}, model=tiny_llama)
    assert list(found) == [2]
    assert "layer 1 was left out: its vector is zero" in caplog.text
    with pytest.raises(RequestError, match="none of the vectors can be used"):
        engine.import_directions({1: np.zeros(WIDTH)}, model=tiny_llama)


def test_cosines_are_of_shared_layers() -> None:
    one, other = some_directions(), {2: direction_at(2), 3: direction_at(1)}
    expected = float(unit(vector(3)) @ unit(vector(1)))
    assert engine.direction_cosines(one, other) == {2: pytest.approx(1), 3: pytest.approx(expected, abs=1e-5)}
    with pytest.raises(RequestError, match="they share no layer"):
        engine.direction_cosines({1: direction_at(1)}, {2: direction_at(2)})


# Import: what does not fit


@pytest.mark.parametrize(
    ("vectors", "origin", "said"),
    [
        ({4: vector(0)}, None, r"a vector at layer 4, but .* has layers 0 to 3"),
        ({-1: vector(0)}, None, "a vector at layer -1"),
        ({5: vector(0)}, "llama.cpp-generator", "a vector at layer 4"),
        ({0: vector(0)}, "refusal-direction", "no vector at the output of a block"),
        ({3: vector(0)}, "repeng", "no vector at the output of a block"),
        ({1: vector(0, 16)}, None, r"has the shape \(16,\), but .* width 32"),
        ({1: np.ones((1, WIDTH))}, None, r"has the shape \(1, 32\)"),
        ({1: np.full(WIDTH, np.nan)}, None, "is not finite"),
        ({1: np.full(WIDTH, 1e200)}, None, "is not finite"),  # its length is not
        ({1: "loud"}, None, "is not an array"),
        ({"1": vector(0)}, None, "a layer cannot be '1'"),
        ({1: vector(0)}, "llama", "did you mean 'llama.cpp'"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(
    tiny_llama: PreTrainedModel, vectors: dict[int, object], origin: str | None, said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        engine.import_directions(vectors, origin, model=tiny_llama)


def test_files_for_another_depth_are_refused(tmp_path: Path, tiny_llama: PreTrainedModel) -> None:
    write_persona_vectors(tmp_path / "p.pt", blocks=3)
    write_mean_diffs(tmp_path / "m.pt", blocks=3)
    for name, origin in (("p.pt", "persona-vectors"), ("m.pt", "refusal-direction")):
        with pytest.raises(RequestError, match=r"for a model of 3 blocks, but .* has 4"):
            engine.import_directions(tmp_path / name, origin, model=tiny_llama)


def test_a_refusal_direction_needs_its_layer(tmp_path: Path, tiny_llama: PreTrainedModel) -> None:
    write_refusal_direction(tmp_path, layer=3)
    (tmp_path / "direction_metadata.json").unlink()
    with pytest.raises(StoreError, match=r"there is no direction_metadata\.json in its folder"):
        engine.import_directions(tmp_path / "direction.pt", "refusal-direction", model=tiny_llama)


def test_a_file_needs_an_origin(tmp_path: Path, tiny_llama: PreTrainedModel) -> None:
    with pytest.raises(RequestError, match="the tool that wrote the file is not named"):
        engine.import_directions(tmp_path / "v.gguf", model=tiny_llama)


def test_own_directions_of_another_model_are_refused(tiny_llama: PreTrainedModel) -> None:
    own = direction_at(1)
    own["provenance"] = {"model": "someone/else"}  # type: ignore[typeddict-item]  # the rest is not read
    with pytest.raises(RequestError, match="come from someone/else"):
        engine.import_directions({1: vector(1)}, model=tiny_llama, own={1: own})


# Import: hostile and damaged files


class _Runs:
    """Runs code when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.target),)


def test_no_code_in_a_file_runs(tmp_path: Path, tiny_llama: PreTrainedModel) -> None:
    torch.save(_Runs(tmp_path / "made"), tmp_path / "evil.pt")
    with pytest.raises(StoreError, match="no code in it was run"):
        engine.import_directions(tmp_path / "evil.pt", "persona-vectors", model=tiny_llama)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "content",
    [
        [torch.ones(WIDTH)],
        torch.ones(1).expand(2**40, WIDTH),
        torch.ones(BLOCKS + 1, WIDTH).long(),
        torch.ones(BLOCKS + 1, WIDTH).to_sparse(),
        torch.ones(2, 3, 4, 5),
        torch.ones(0, WIDTH),
    ],
    ids=["list", "expanded", "integers", "sparse", "four dimensions", "empty"],
)
def test_pt_files_of_other_things_are_refused(tmp_path: Path, tiny_llama: PreTrainedModel, content: object) -> None:
    torch.save(content, tmp_path / "v.pt")
    for origin in ("persona-vectors", "refusal-direction"):
        with pytest.raises(StoreError, match="is not a file of"):
            engine.import_directions(tmp_path / "v.pt", origin, model=tiny_llama)


BAD_GGUFS: dict[str, dict[str, np.ndarray]] = {
    "layer 0": {"direction.0": vector(0)},
    "float16": {"direction.1": vector(0).astype(np.float16)},
    "float64": {"direction.1": vector(0).astype(np.float64)},
    "column": {"direction.1": vector(0)[:, None]},
    "matrix": {"direction.1": np.ones((2, WIDTH), np.float32)},
    "other name": {"direction.1": vector(0), "output.weight": vector(1)},
    "no vectors": {},
}


@pytest.mark.parametrize("name", BAD_GGUFS)
def test_ggufs_that_llama_cpp_refuses_are_refused(tmp_path: Path, tiny_llama: PreTrainedModel, name: str) -> None:
    path = write_gguf(tmp_path / "v.gguf", BAD_GGUFS[name])
    with pytest.raises(StoreError, match=r"is not a file of llama\.cpp"):
        engine.import_directions(path, "llama.cpp", model=tiny_llama)


def test_a_row_is_a_vector(tmp_path: Path, tiny_llama: PreTrainedModel) -> None:
    path = write_gguf(tmp_path / "v.gguf", {"direction.1": vector(1)[None]})
    assert_layers(engine.import_directions(path, "llama.cpp", model=tiny_llama), {1: vector(1)})


def test_damaged_ggufs_are_refused_or_read(tmp_path: Path, tiny_llama: PreTrainedModel) -> None:
    """Cut at every place, and with every byte of the header at its largest: no other error, no huge allocation."""
    path = write_gguf(tmp_path / "v.gguf", {"direction.1": vector(1), "direction.2": vector(2)})
    whole, broken = path.read_bytes(), tmp_path / "broken.gguf"
    start = len(whole) - 2 * 4 * WIDTH
    changed = [whole[:end] for end in range(0, len(whole) - 4 * WIDTH, 3)]
    changed += [whole[:place] + b"\xff" + whole[place + 1 :] for place in range(start)]
    refused = 0
    for content in changed:
        broken.write_bytes(content)
        try:
            engine.import_directions(broken, "llama.cpp", model=tiny_llama)
        except LayerscopeError:
            refused += 1
    assert refused > len(changed) / 2


def test_a_long_or_irregular_file_is_not_read(tmp_path: Path, tiny_llama: PreTrainedModel) -> None:
    with (tmp_path / "long.gguf").open("wb") as file:
        file.truncate(2**30 + 1)
    os.mkfifo(tmp_path / "pipe.gguf")
    for name, said in (
        ("long.gguf", "has 1073741825 bytes"),
        ("pipe.gguf", "a named pipe, not a regular file"),
        ("nothing.gguf", "there is no file"),
    ):
        with pytest.raises(StoreError, match=said):
            engine.import_directions(tmp_path / name, "llama.cpp", model=tiny_llama)
