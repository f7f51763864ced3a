"""`layerscope vectors import` and `layerscope directions --format`: control vectors out and in."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

import engine
from engine.records.files import VECTOR_ORIGINS
from engine.store.names import DIRECTIONS
from engine.store.read import load_contrast
from tests.engine.cli.conftest import assert_failed, widest
from tests.engine.steering.foreign_files import vector, write_gguf, write_persona_vectors
from tests.program import Program


def own_vectors(contrasts: Path, method: str = "mean_diff") -> dict[str, np.ndarray]:
    """The expected vectors: the direction of each layer, scaled by the mean norm of the states."""
    found = engine.extract_directions(load_contrast(contrasts / "loudness"), method)
    return {f"direction.{layer}": (one["vector"] * one["norm"]).numpy() for layer, one in found.items()}


def test_the_name_of_a_capture_is_refused(layerscope: Program, contrasts: Path, tiny_folder: Path) -> None:
    layerscope("directions", "loudness", "--format", "gguf", "-o", "loud.gguf")
    command = ("vectors", "import", "loud.gguf", "--from", "llama.cpp", "--model", str(tiny_folder), "--name", "warmth")
    result = layerscope(*command, "--force")
    assert_failed(result, 5)
    assert "warmth is the name of a capture, and these directions come from the file loud.gguf" in result.stderr
    assert not (contrasts / f"warmth{DIRECTIONS}").exists()


@pytest.mark.parametrize("method", [None, "pca"])
def test_a_capture_is_exported_without_saving_directions(
    layerscope: Program, contrasts: Path, method: str | None
) -> None:
    arguments = ["directions", "loudness", "--format", "safetensors", "--output", "out/loud.safetensors"]
    result = layerscope(*arguments, *(["--method", method] if method else []))
    assert (result.returncode, result.stdout) == (0, "out/loud.safetensors\n"), result.stderr
    assert result.stderr == f"exported 4 directions ({method or 'mean_diff'}), layers 0 to 3\n"
    read = safetensors.numpy.load_file(layerscope.folder / "out/loud.safetensors")
    expected = own_vectors(contrasts, method or "mean_diff")
    assert read.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(read[name], values, rtol=1e-5, atol=1e-6)
    assert not (contrasts / f"loudness{DIRECTIONS}").exists()


def test_a_gguf_comes_back_at_its_layers(layerscope: Program, contrasts: Path, tiny_folder: Path) -> None:
    exported = layerscope("directions", "loudness", "--format", "gguf", "-o", "loud.gguf")
    assert exported.returncode == 0, exported.stderr
    leading = engine.rank_layers(load_contrast(contrasts / "loudness"))["layers"][0]["layer"]
    at = leading or 2
    assert [line.rstrip() for line in exported.stderr.splitlines()] == [
        "layer 0 was left out: llama.cpp cannot steer block 0",
        "exported 3 directions (mean_diff), layers 1 to 3",
        f"llama.cpp: --control-vector-scaled loud.gguf:0.1 --control-vector-layer-range {at} {at}",
    ]
    command = ("vectors", "import", "loud.gguf", "--from", "llama.cpp", "--model", str(tiny_folder), "--name", "back")
    engine.save_directions(engine.extract_directions(load_contrast(contrasts / "loudness")), contrasts / "mine")
    result = layerscope(*command, "--compare", "mine")
    assert result.returncode == 0, result.stderr
    assert result.stderr == "saved 3 directions, layers 1 to 3\n"
    assert result.stdout.splitlines() == [
        f"activations/back{DIRECTIONS}",
        "layer  cosine",
        *(f"{layer:5}  +1.000" for layer in (1, 2, 3)),
    ]
    saved, _ = engine.load_directions(contrasts / "back")
    for name, values in own_vectors(contrasts).items():
        if name != "direction.0":
            one = saved[int(name.removeprefix("direction."))]
            np.testing.assert_allclose((one["vector"] * one["norm"]).numpy(), values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--format", "npz", "--output", "loud.exe"], "'loud.exe' is not the name of a file of control vectors"),
        (["--format", "npz", "--output", "loud.gguf"], "Expected: a name ending in .npz"),
        (["--unit", "raw"], "--unit is the unit of exported vectors. Next: add --format, or omit --unit"),
        (["--output", "loud.gguf"], "loud.gguf is the name of a file of control vectors. Next: add --format gguf"),
    ],
)
def test_options_that_contradict_each_other_end_with_2(
    layerscope: Program, contrasts: Path, arguments: list[str], said: str
) -> None:
    before = sorted(contrasts.iterdir())
    result = layerscope("directions", "loudness", *arguments)
    assert_failed(result, 2)
    assert said in result.stderr
    assert (sorted(contrasts.iterdir()), [*layerscope.folder.glob("*loud.*")]) == (before, [])


def test_saved_directions_are_exported_as_they_are(layerscope: Program, contrasts: Path) -> None:
    found = engine.extract_directions(load_contrast(contrasts / "loudness"), "lda")
    engine.save_directions(found, contrasts / "probe")
    result = layerscope("directions", "probe", "--format", "npz", "--output", "probe.npz", "--unit", "raw")
    assert "exported 4 directions (lda)" in result.stderr
    np.testing.assert_array_equal(np.load(layerscope.folder / "probe.npz")["direction.2"], found[2]["vector"].numpy())


def test_imports_of_another_tool_are_read(layerscope: Program, contrasts: Path, tiny_folder: Path) -> None:
    rows = write_persona_vectors(layerscope.folder / "evil_response_avg_diff.pt")
    command = ("vectors", "import", "evil_response_avg_diff.pt", "--from", "persona-vectors", "--name", "evil")
    result = layerscope(*command, "--model", str(tiny_folder), "--json", "--compare", "loudness")
    assert result.returncode == 0, result.stderr
    shown = json.loads(result.stdout)
    own = own_vectors(contrasts)
    assert shown["path"] == f"activations/evil{DIRECTIONS}"
    assert shown["cosines"].keys() == {"0", "1", "2"}
    for layer, cosine in shown["cosines"].items():
        one, other = rows[int(layer) + 1], own[f"direction.{layer}"]
        assert cosine == pytest.approx(one @ other / np.linalg.norm(one) / np.linalg.norm(other), abs=1e-5)
    saved, _ = engine.load_directions(contrasts / "evil")
    assert {layer: one["positive_mean"] for layer, one in saved.items()} == {
        layer: pytest.approx(float(np.linalg.norm(rows[layer + 1]))) for layer in range(3)
    }
    text = layerscope("read", "evil", "--prompt", "w5 w60 w9", "--layer", "1")
    assert text.returncode == 0, text.stderr
    assert text.stdout.startswith("vectors, layer 1, imported\n0: no projection, 1: length of the imported vector\n")
    assert f"imported for {tiny_folder}" in "".join(text.stdout.split("\n")).replace("  ", " ")
    model, tokenizer, _ = engine.load_model_and_tokenizer(str(tiny_folder))
    states = engine.capture_activations(model, tokenizer, "w5 w60 w9")["activations"][1][0].double()
    expected = states @ torch.from_numpy(rows[2]).double() / float(np.linalg.norm(rows[2])) ** 2
    reading = engine.read_text(model, tokenizer, saved, "w5 w60 w9")
    assert reading["values"][1] == pytest.approx(expected.tolist(), abs=1e-4)


def test_without_a_comparison_the_scale_is_unknown(layerscope: Program, contrasts: Path, tiny_folder: Path) -> None:
    write_gguf(layerscope.folder / "v.gguf", {"direction.2": vector(2)})
    command = ("vectors", "import", "v.gguf", "--from", "repeng", "--model", str(tiny_folder), "--name", "v")
    result = layerscope(*command)
    assert (result.returncode, result.stdout) == (0, f"activations/v{DIRECTIONS}\n")
    assert "import with --compare CAPTURE" in result.stderr
    refused = layerscope("directions", "v", "--format", "npz", "--output", "v.npz")
    assert_failed(refused, 2)
    assert "the norm of the states at layer 2 is not known" in refused.stderr
    refused = layerscope(*command)
    assert_failed(refused, 5)
    assert "already exists. Next: choose another name with --name, or replace them with --force" in refused.stderr
    assert layerscope(*command, "--force", "--compare", "loudness").returncode == 0
    assert layerscope("directions", "v", "--format", "npz", "--output", "v.npz").returncode == 0
    assert contrasts.exists()


@pytest.mark.usefixtures("contrasts")
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["directions", "loudness", "--format", "gguf"], 2, "add --output loudness.gguf"),
        (["directions", "loudness", "--format", "ggml", "-o", "x"], 2, "there is no format 'ggml'"),
        (
            ["directions", "loudness", "--format", "gguf", "--unit", "meter", "-o", "x.gguf"],
            2,
            "there is no unit 'meter'",
        ),
        (["directions", "nothing", "--format", "gguf", "-o", "x"], 5, "there are no directions at"),
        (["directions", "prompt", "--format", "gguf", "-o", "x"], 2, "is a capture of prompts"),
        (["vectors", "import", "x.gguf", "--from", "llama", "--model", "m", "--name", "x"], 2, "no origin 'llama'"),
        (["vectors", "import", "x", "--from", "repeng", "--model", "smolm2", "--name", "x"], 2, "did you mean 'smoll"),
        (["vectors", "import", "x", "--from", "repeng", "--model", "TINY", "--name", "x"], 5, "there is no file x"),
    ],
)
def test_what_cannot_be_done_says_so(
    layerscope: Program, tiny_folder: Path, arguments: list[str], code: int, said: str
) -> None:
    result = layerscope(*(str(tiny_folder) if argument == "TINY" else argument for argument in arguments))
    assert_failed(result, code)
    assert said in result.stderr


def test_vectors_alone_shows_its_help(layerscope: Program) -> None:
    result = layerscope("vectors")
    assert result.returncode == 0
    assert "import" in result.stdout


def test_the_help_of_import_fits_80_columns_and_names_every_tool(layerscope: Program) -> None:
    shown = layerscope("vectors", "import", "--help", COLUMNS="80").stdout
    assert widest(shown) <= 80
    assert all(origin in shown for origin in VECTOR_ORIGINS)
    examples = [line.split() for line in shown.splitlines() if line.startswith("   layerscope")]
    assert [words[:3] for words in examples] == [["layerscope", "vectors", "import"]] * 3
