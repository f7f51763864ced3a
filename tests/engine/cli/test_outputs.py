"""`--output` of every command: a folder, named by a slash or existing, gets the default name."""

from pathlib import Path

import pytest

from engine.store.names import is_folder, output_path
from tests.engine.cli.conftest import assert_failed, concept_text
from tests.program import Program


@pytest.fixture(params=["made", "missing"])
def folder(request: pytest.FixtureRequest, layerscope: Program) -> str:
    """How to name a folder: one that exists, without a slash, or a new one, with a slash."""
    if request.param == "made":
        (layerscope.folder / "two").mkdir()
        return "two"
    return "two/"


@pytest.mark.parametrize("shards", [(), ("--shards",)])
def test_a_capture_in_a_folder(layerscope: Program, tiny_folder: Path, folder: str, shards: tuple[str, ...]) -> None:
    (layerscope.folder / "loudness.toml").write_text(concept_text("loudness"))
    capture = ("capture", "--model", str(tiny_folder), "--concept", "loudness.toml", "--no-specificity", *shards)
    result = layerscope(*capture, "--output", folder)
    assert result.returncode == 0, result.stderr
    assert "saved two/tiny_loudness" in result.stderr
    assert (layerscope.folder / "two" / "tiny_loudness.json").exists()
    assert layerscope("show", "tiny_loudness", "--store", "two").returncode == 0
    again = layerscope(*capture, "--output", folder)
    assert "there is already a capture called tiny_loudness" in again.stderr


@pytest.mark.usefixtures("contrasts")
@pytest.mark.parametrize(
    ("command", "file"),
    [
        (("visualize", "loudness"), "loudness.png"),
        (("visualize", "loudness", "--layer", "2"), "loudness_layer2.png"),
        (("compare", "loudness", "warmth"), "loudness_and_warmth.png"),
        (("read", "loudness", "--prompt", "w5 w6", "--model", "TINY"), "loudness_tokens.png"),
        (
            ("steer", "activations/loudness.pt", "-p", "w5", "--raw", "--sweep", "--layers", "1", "--model", "TINY"),
            "loudness_sweep.png",
        ),
        (("directions", "loudness", "--format", "gguf"), "loudness.gguf"),
        (("directions", "loudness"), "loudness.directions.safetensors"),
    ],
    ids=["layers", "classes", "comparison", "tokens", "sweep", "vectors", "directions"],
)
def test_a_file_in_a_folder(layerscope: Program, tiny_folder: Path, command: tuple[str, ...], file: str) -> None:
    given = [str(tiny_folder) if argument == "TINY" else argument for argument in command]
    result = layerscope(*given, "--output", "out/")
    assert result.returncode == 0, result.stderr
    assert (layerscope.folder / "out" / file).stat().st_size > 0
    assert [path.name for path in (layerscope.folder / "out").iterdir()] == [file]


@pytest.mark.usefixtures("contrasts")
def test_a_figure_in_a_folder_that_exists(layerscope: Program, folder: str) -> None:
    result = layerscope("visualize", "loudness", "--output", folder)
    assert (result.returncode, result.stderr) == (0, "saved two/loudness.png\n")


@pytest.mark.usefixtures("contrasts")
@pytest.mark.parametrize(
    "command",
    [
        ("visualize", "loudness"),
        ("compare", "loudness", "warmth"),
        ("read", "loudness", "--prompt", "w5"),
        ("steer", "loudness", "--prompt", "w5", "--sweep"),
    ],
)
def test_a_figure_that_cannot_be_written_is_refused_before_the_work(
    layerscope: Program, command: tuple[str, ...]
) -> None:
    (layerscope.folder / "notes").write_text("a file")
    for output in ("notes/figure.png", "notes/new/"):
        refused = layerscope(*command, "--output", output)
        assert_failed(refused, 5)
        assert refused.stderr.startswith(f"error: {output} cannot be written: ")
        assert refused.stderr.endswith("notes is not a writable folder. Next: choose another path.\n")


def test_a_plain_name_of_directions_stays_in_the_store(layerscope: Program, contrasts: Path) -> None:
    (layerscope.folder / "probe").mkdir()
    assert layerscope("directions", "loudness", "--output", "probe").returncode == 0
    assert (contrasts / "probe.directions.safetensors").exists()


def test_a_folder_of_shards_is_a_capture(tmp_path: Path) -> None:
    shards = tmp_path / "mine"
    shards.mkdir()
    assert is_folder(str(shards))
    (shards / ".plan.json.1a2b.unfinished").touch()  # killed before the plan was saved
    assert not is_folder(str(shards))
    (shards / "plan.json").touch()
    (shards / "other").touch()
    assert output_path(f"{shards}/", "default") == shards
    (shards / "plan.json").unlink()
    assert output_path(str(shards), "default") == shards / "default"


def test_a_command_that_reads_a_capture_refuses_a_folder(layerscope: Program) -> None:
    result = layerscope("show", "two/")
    assert result.returncode == 5
    assert (
        "'two/' names a folder, not a capture. Expected: a path that ends in a name, such as two/mine" in result.stderr
    )
