"""Commands that messages suggest work as printed, also for captures outside the default store."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from engine.stats.specificity import not_measured
from engine.store.record import encode_record, read_record
from tests.engine.cli.conftest import concept_text
from tests.program import Program, Result

STORE = "my runs"  # has to be quoted


def suggested(text: str) -> list[str]:
    """The arguments of the only command in a message: in backticks, or after a colon or comma until the end."""
    found = re.findall(
        r"`layerscope ([^`]+)`|(?:: |, or )layerscope ([^`]+?)(?:\. Expected.*)?\.?$", text, re.MULTILINE
    )
    assert len(found) == 1, text
    return shlex.split("".join(found[0]))


@pytest.fixture
def elsewhere(contrasts: Path) -> Path:
    """The captures in another store; no default store exists."""
    folder = contrasts.with_name(STORE)
    contrasts.rename(folder)
    return folder


@pytest.fixture
def registered(layerscope: Program, tiny_folder: Path) -> None:
    """The tiny model has an alias."""
    configured = layerscope.folder / "config" / "layerscope"
    configured.mkdir(parents=True)
    (configured / "models.toml").write_text(f'[tiny]\npath = "{tiny_folder}"\nlayers = 4\nparameters = "tiny"\n')


def followed(layerscope: Program, result: Result, *more: str) -> Result:
    """The result of the command that stderr suggests."""
    done = layerscope(*suggested(result.stderr), *more)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.usefixtures("elsewhere", "tiny_neighbours", "registered")
@pytest.mark.parametrize("named", [("loudness", "--store", STORE), (f"{STORE}/loudness.pt",)])
def test_the_comparison_that_rank_suggests(layerscope: Program, named: tuple[str, ...]) -> None:
    result = layerscope("rank", *named)
    assert result.stderr == f"not compared with neighbours yet: layerscope specificity loudness --store '{STORE}'\n"
    followed(layerscope, result)
    assert layerscope("rank", *named).stderr == ""


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("postponed", [True, False])
def test_only_a_comparison_that_was_postponed_is_suggested(
    layerscope: Program, elsewhere: Path, postponed: bool
) -> None:
    record = read_record(elsewhere / "loudness.json")
    record["specificity"] = not_measured("a quick capture", postponed=postponed)
    (elsewhere / "loudness.json").write_bytes(encode_record(record))
    result = layerscope("rank", "loudness", "--store", STORE)
    command = f"layerscope specificity loudness --store '{STORE}'"
    assert (command in result.stderr) == postponed


@pytest.mark.usefixtures("elsewhere")
def test_a_model_without_an_alias_is_asked_for(layerscope: Program) -> None:
    result = layerscope("rank", "loudness", "--store", STORE)
    assert suggested(result.stderr) == ["specificity", "loudness", "--store", STORE, "--model", "MODEL"]
    result = layerscope("visualize", "loudness", "--store", STORE, "--causal")
    assert f"Next: layerscope rank loudness --store '{STORE}' --causal --model MODEL." in result.stderr


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("own_pairs", [True, False])
def test_the_causal_ranking_of_own_pairs_is_suggested_with_neutral_prompts(
    layerscope: Program, elsewhere: Path, own_pairs: bool
) -> None:
    record = read_record(elsewhere / "loudness.json")
    record["concept"] = None if own_pairs else record["concept"]
    (elsewhere / "loudness.json").write_bytes(encode_record(record))
    result = layerscope("visualize", "loudness", "--store", STORE, "--causal")
    command = f"Next: layerscope rank loudness --store '{STORE}' --causal{' --neutral FILE' if own_pairs else ''}."
    assert command in result.stderr
    assert ("a file with one neutral prompt per pair and line" in result.stderr) == own_pairs


@pytest.mark.usefixtures("elsewhere", "registered")
def test_a_folder_whose_alias_is_another_model_now_is_refused_once_it_is_loaded(
    layerscope: Program, small_folder: Path
) -> None:
    """It might be the same model in another folder."""
    registry = layerscope.folder / "config" / "layerscope" / "models.toml"
    registry.write_text(f'[tiny]\npath = "{small_folder}"\nlayers = 2\nparameters = "small"\n')
    result = layerscope("rank", "loudness", "--store", STORE)
    refused = layerscope(*suggested(result.stderr))
    assert refused.returncode == 2
    assert re.search(r"is not the model of this capture: its \w+ differ.*Next: name it with --model", refused.stderr)


@pytest.mark.usefixtures("tiny_neighbours")
def test_the_comparison_that_a_quick_capture_suggests(layerscope: Program, tiny_folder: Path) -> None:
    (layerscope.folder / "loudness.toml").write_text(concept_text("loudness"))
    capture = (
        "capture",
        "--model",
        str(tiny_folder),
        "--concept",
        "loudness.toml",
        "--quick",
        "--output",
        f"{STORE}/q",
    )
    followed(layerscope, layerscope(*capture))
    assert layerscope("rank", "q", "--store", STORE).stderr == ""


def test_an_empty_store_suggests_a_capture_that_fills_it(layerscope: Program, tiny_folder: Path) -> None:
    (layerscope.folder / STORE).mkdir()
    result = layerscope("list", "--store", STORE)
    assert f"create one with `layerscope capture --concept honesty --output '{STORE}/'`" in result.stderr
    # With another model and concept, which take less time.
    *_, output, folder = suggested(result.stderr)
    (layerscope.folder / "loudness.toml").write_text(concept_text("loudness"))
    what = ("--model", str(tiny_folder), "--concept", "loudness.toml", "--no-specificity")
    assert layerscope("capture", *what, output, folder).returncode == 0
    assert "tiny_loudness" in layerscope("list", "--store", STORE).stdout


def test_a_store_that_is_missing_suggests_the_same(layerscope: Program) -> None:
    result = layerscope("list", "--store", STORE)
    assert suggested(result.stderr) == ["capture", "--concept", "honesty", "--output", f"{STORE}/"]
    assert suggested(layerscope("list").stderr) == ["capture", "--concept", "honesty"]


@pytest.mark.usefixtures("elsewhere")
def test_lists_are_those_of_the_same_store(layerscope: Program) -> None:
    missing = layerscope("show", "quiet", "--store", STORE)
    assert missing.returncode == 5
    assert f"Next: layerscope list --store '{STORE}' shows the captures" in missing.stderr
    unfiltered = followed(layerscope, layerscope("list", "--store", STORE, "--concept", "none"), "--json")
    assert '"loudness"' in unfiltered.stdout


def test_leftovers_are_deleted_where_they_are(layerscope: Program, elsewhere: Path) -> None:
    leftover = elsewhere / ".loudness.pt.1a2b3c4d.unfinished"
    leftover.touch()
    result = layerscope("list", "--store", STORE)
    assert suggested(result.stderr.partition("`: ")[0] + "`") == ["verify", "--store", STORE, "--clean"]
    layerscope("verify", "--store", STORE, "--clean")
    assert not leftover.exists()


@pytest.mark.parametrize("named", [("--store", STORE), ("loudness", "--store", STORE), (f"{STORE}/loudness",)])
def test_a_damaged_capture_is_deleted_where_it_is(layerscope: Program, elsewhere: Path, named: tuple[str, ...]) -> None:
    (elsewhere / "loudness.pt").write_bytes(b"")
    followed(layerscope, layerscope("verify", *named), "--yes")
    assert not (elsewhere / "loudness.json").exists()


def test_damaged_directions_are_extracted_again_where_they_are(layerscope: Program, elsewhere: Path) -> None:
    file = elsewhere / "loudness.directions.safetensors"
    file.write_bytes(b"damaged")
    followed(layerscope, layerscope("read", "loudness", "--store", STORE, "--prompt", "w5"))
    assert layerscope("verify", "loudness", "--store", STORE).returncode == 0
    shutil.copy(file, elsewhere / "probe.directions.safetensors")
    (elsewhere / "probe.directions.safetensors").write_bytes(b"damaged")
    result = layerscope("read", "probe", "--store", STORE, "--prompt", "w5")
    assert f"layerscope directions CAPTURE --output probe --store '{STORE}' --force" in result.stderr
