"""`layerscope specificity` and what `rank`, `capture` and `compare` show of it."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

import engine
from engine.concepts.catalog import load_concept
from engine.plots.layers_text import render_text
from engine.plots.specificity_text import neighbour_sentences, specificity_as_text
from engine.store import specificity
from engine.store.catalog import show_capture
from engine.store.read import load_contrast
from engine.store.record import encode_record, read_record
from tests.conftest import Loaded
from tests.engine.cli.conftest import assert_failed, concept_text, widest
from tests.program import Program


def spaced(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.usefixtures("tiny_neighbours")
def test_a_saved_capture_is_compared_and_rank_shows_it(layerscope: Program, contrasts: Path, tiny_folder: Path) -> None:
    before = layerscope("rank", "loudness").stdout
    assert "neighbours" not in before
    result = layerscope("specificity", "loudness", "--model", str(tiny_folder))
    assert result.returncode == 0, result.stderr
    assert "capturing warmth once for this model" in spaced(result.stderr)
    report = show_capture(contrasts / "loudness")["specificity"]
    assert report is not None
    block = render_text(specificity_as_text(report))
    assert result.stdout.startswith(block)
    shown = layerscope("rank", "loudness").stdout
    assert block in shown
    assert widest(shown) <= 80
    for sentence in neighbour_sentences(report):
        assert sentence in spaced(shown)
        assert sentence in spaced(result.stdout)
    assert json.loads(layerscope("rank", "loudness", "--json").stdout)["specificity"] == report
    again = layerscope("specificity", "loudness", "warmth", "--model", str(tiny_folder), "--json", "--quiet")
    assert (again.returncode, again.stderr) == (0, "")
    assert [row["name"] for row in json.loads(again.stdout)["layers"][0]["neighbours"]] == ["calm", "warmth"]


def test_a_capture_is_compared_unless_switched_off(
    layerscope: Program, tiny_folder: Path, tiny_neighbours: Path
) -> None:
    (layerscope.folder / "loudness.toml").write_text(concept_text("loudness"))
    capture = ("capture", "--model", str(tiny_folder), "--concept", "loudness.toml")
    result = layerscope(*capture, "--no-specificity")
    assert result.returncode == 0, result.stderr
    assert "neighbour" not in result.stdout
    assert not tiny_neighbours.exists()
    result = layerscope(*capture, "--force", "--json")
    assert result.returncode == 0, result.stderr
    assert [row["name"] for row in json.loads(result.stdout)["specificity"]["layers"][0]["neighbours"]] == [
        "warmth",
        "calm",
    ]


def test_a_quick_capture_runs_no_prompts_of_neighbours(
    layerscope: Program, tiny_folder: Path, tiny_neighbours: Path
) -> None:
    (layerscope.folder / "loudness.toml").write_text(concept_text("loudness"))
    capture = ("capture", "--model", str(tiny_folder), "--concept", "loudness.toml", "--quick")
    result = layerscope(*capture)
    assert result.returncode == 0, result.stderr
    assert spaced(result.stdout).endswith("warning: not compared with neighbours: a quick capture")
    command = f"layerscope specificity tiny_loudness --model {tiny_folder}"
    assert result.stderr.endswith(f"\nto compare it with its neighbours: {command}\n")
    assert not tiny_neighbours.exists()
    assert layerscope(*command.split()[1:]).returncode == 0
    result = layerscope(*capture, "--force", "--json")
    assert len(json.loads(result.stdout)["specificity"]["layers"][0]["neighbours"]) == 2


@pytest.mark.usefixtures("tiny_neighbours")
def test_a_dry_run_counts_the_prompts_of_neighbours(layerscope: Program, tiny_folder: Path) -> None:
    (layerscope.folder / "loudness.toml").write_text(concept_text("loudness"))
    capture = ("capture", "--model", str(tiny_folder), "--concept", "loudness.toml")
    dry = (*capture, "--dry-run")

    def counted(*options: str) -> int:
        found: int = json.loads(layerscope(*dry, *options, "--json").stdout)["neighbours"]
        return found

    result = layerscope(*capture, "--no-specificity", "--json")
    own = 2 * json.loads(result.stdout)["num_pairs"]
    assert counted() == 2 * own  # warmth and calm have as many pairs
    assert layerscope(*dry).stdout.endswith(f"\nand {2 * own} prompts of neighbours, once for this model\n")
    assert counted("--no-specificity") == counted("--quick") == counted("--positions", "2:4") == 0
    assert layerscope(*capture, "--force").returncode == 0
    assert counted() == 0
    assert counted("--site", "mlp_out") == 2 * own
    assert "neighbours" not in layerscope(*dry).stdout


def test_an_interrupt_after_the_save_says_so(
    layerscope: Program, tiny_folder: Path, tiny_neighbours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    (layerscope.folder / "loudness.toml").write_text(concept_text("loudness"))
    monkeypatch.setattr(specificity, "capture_neighbours", interrupted)
    for force in ((), ("--force",)):
        result = layerscope("capture", "--model", str(tiny_folder), "--concept", "loudness.toml", *force)
        assert result.returncode == 130
        again = f"layerscope specificity tiny_loudness --model {tiny_folder}"
        assert f"interrupted after the capture was saved; to compare it with its neighbours: {again}" in result.stderr
    assert not tiny_neighbours.exists()
    assert "specificity" not in show_capture(layerscope.folder / "activations" / "tiny_loudness")


def test_a_reason_is_shown(layerscope: Program, contrasts: Path) -> None:
    record = read_record(contrasts / "loudness.json")
    record["specificity"] = engine.records.results.SpecificityReport(
        layer=None, layers=[], resampled="", reason="some weights are offloaded", warnings=[]
    )
    (contrasts / "loudness.json").write_bytes(encode_record(record))
    for command in ("rank", "show"):
        shown = layerscope(command, "loudness").stdout
        assert shown.count("not compared with neighbours: some weights are offloaded") == 1, command


@pytest.mark.usefixtures("tiny_neighbours")
def test_a_warning_is_shown_once(layerscope: Program, contrasts: Path, tiny_folder: Path) -> None:
    assert layerscope("specificity", "loudness", "--model", str(tiny_folder)).returncode == 0
    record = read_record(contrasts / "loudness.json")
    assert record["specificity"] is not None
    record["specificity"]["warnings"] = ["they differ in dtype"]
    (contrasts / "loudness.json").write_bytes(encode_record(record))
    for command in ("rank", "show"):
        assert layerscope(command, "loudness").stdout.count("warning: they differ in dtype") == 1, command


@pytest.mark.usefixtures("contrasts", "tiny_neighbours")
def test_what_cannot_be_compared_ends_with_an_error(layerscope: Program, tiny_folder: Path) -> None:
    how, store = ("--model", str(tiny_folder)), layerscope.folder / "activations"
    (store / "bare.pt").write_bytes((store / "loudness.pt").read_bytes())
    for arguments, code, said in (
        (("nothing", *how), 5, "there is no capture called 'nothing'"),
        (("prompt", "--model", "nowhere"), 2, "prompt is a capture of prompts"),  # before the model is loaded
        (("bare", "--model", "nowhere"), 5, "bare' cannot be used: it has no record"),
        (("loudness", "loudness_all", *how), 2, "differ in site or positions"),
        (("loudness", "loudness", *how), 2, "cannot be its own neighbour"),
        (("loudness",), 2, "name it with --model"),
    ):
        result = layerscope("specificity", *arguments)
        assert_failed(result, code)
        assert said in spaced(result.stderr)


def test_three_captures_show_their_matrix(layerscope: Program, contrasts: Path) -> None:
    names = ("loudness", "warmth", "loudness_few")
    result = layerscope("compare", *names, "--output", "matrix.png")
    assert (result.returncode, result.stderr) == (0, "saved matrix.png\n")
    assert widest(result.stdout) <= 80
    assert matplotlib.image.imread(layerscope.folder / "matrix.png").shape[1] > 800
    matrix = json.loads(layerscope("compare", *names, "--json").stdout)
    records = [show_capture(contrasts / name) for name in names]
    expected = engine.compare_transfer(records, lambda record: load_contrast(contrasts / record["name"]))
    assert matrix == expected
    rows = [line.split()[-3:] for line in result.stdout.splitlines() if re.match(r"\d ", line)]
    assert rows == [[f"{cell['auroc']:.2f}" for cell in row] for row in matrix["cells"]]
    assert json.loads(layerscope("compare", *names, "--layer", "1", "--json").stdout)["layer"] == 1


@pytest.mark.usefixtures("contrasts")
def test_a_matrix_needs_comparable_captures(layerscope: Program) -> None:
    for arguments, said in (
        (("loudness",), "names of two or more captures"),
        (("loudness", "warmth", "small_calm"), "differ in model: tiny and small"),
        (("loudness", "warmth", "loudness_all"), "differ in site or positions"),
        (("loudness", "warmth", "prompt"), "capture of prompts"),
        (("loudness", "loudness_low", "loudness_high"), "share no layer"),
        (("loudness", "warmth", "loudness_few", "--layer", "9"), "layer 9 was not captured"),
        (("loudness", "warmth", "loudness"), "loudness is given twice"),
        (("loudness", "warmth", "--layer", "1"), "--layer applies to the matrix"),
    ):
        result = layerscope("compare", *arguments)
        assert_failed(result, 2)
        assert said in spaced(result.stderr)


@pytest.mark.slow
def test_the_default_model_with_the_built_in_neighbours(smollm2: Loaded, tmp_path: Path) -> None:
    """Formality under another name, from other pairs: its neighbour is named, and takes most of d' away."""
    copy = replace(load_concept("formality"), name="copy")
    how = {"layers": [16, 20], "positions": "last", "seed": 1}
    engine.save_activations(engine.capture_from_concept(*smollm2, copy, **how), "copy", store=tmp_path)  # type: ignore[arg-type]
    report = engine.add_specificity("copy", *smollm2, store=tmp_path)
    (row,) = (row for row in report["layers"] if row["layer"] == report["layer"])
    left = {found["name"]: found["d_prime_left"] / row["d_prime"] for found in row["neighbours"]}
    assert left["formality"] < 0.6 < 0.7 < left["verbosity"]
    assert "formality (AUROC" in neighbour_sentences(report)[0]
    assert "as well as their own" in neighbour_sentences(report)[0]
    assert "verbosity" not in neighbour_sentences(report)[0]
