"""`layerscope rank`: layers ordered by a score, as a table, JSON and CSV."""

import csv
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

import engine
from engine.records.files import CaptureRecord
from engine.stats.scores import SCORES
from engine.store.read import load_contrast
from tests.engine.cli.conftest import assert_failed, save_record, widest
from tests.engine.plots.records import (
    TOO_FEW,
    contrast_record,
    contrast_rows,
    prompt_record,
    ranking_of,
    unranked_record,
)
from tests.program import Program, Result, Run

# Layer 17 leads, tied with 16 and 18; layer 4 has a negative score.
D_PRIMES = [round(1.5 - abs(layer - 17) / 8, 3) for layer in range(30)]
RELATIVE_NORMS = [0.5 - abs(layer - 21) / 100 for layer in range(30)]


@pytest.fixture
def record(layerscope: Program) -> CaptureRecord:
    """A capture of thirty layers in the default store, without tensors."""
    rows = contrast_rows(RELATIVE_NORMS, scale=10)
    for row in rows:
        row["pair_cosine"] = 0.9 - abs(row["layer"] - 12) / 40
        row["cosine_sim"] = 0.9 + abs(row["layer"] - 8) / 1000
    ranking = ranking_of(D_PRIMES, tied=[16, 18], warnings=["3 templates are few"])
    return save_record(contrast_record(rows, ranking), layerscope.folder / "activations")


def table_lines(result: Result) -> list[str]:
    """The lines of layers, which start with rank and layer."""
    assert result.returncode == 0, result.stderr
    return [line.rstrip() for line in result.stdout.splitlines() if re.match(r" *\d+=? +\d+ ", line)]


def ranked_layers(record: CaptureRecord) -> list[dict[str, Any]]:
    assert record["ranking"] is not None
    return [dict(row) for row in record["ranking"]["layers"]]


def parsed(result: Result) -> dict[str, Any]:
    assert (result.returncode, result.stderr) == (0, "")
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def csv_rows(result: Result) -> list[dict[str, str]]:
    assert (result.returncode, result.stderr) == (0, "")
    return list(csv.DictReader(io.StringIO(result.stdout), strict=True))


def test_the_table_shows_every_layer_with_its_interval(layerscope: Program, record: CaptureRecord) -> None:
    result = layerscope("rank", "some_honesty")
    command = "layerscope specificity some_honesty --model someone/some-model"  # its alias is not on this machine
    assert result.stderr == f"not compared with neighbours yet: {command}\n"
    assert widest(result.stdout) <= 80
    assert "…" not in result.stdout
    lines = table_lines(result)
    assert len(lines) == 30
    for line, row in zip(lines, ranked_layers(record), strict=True):
        place, layer, *others = line.split()
        assert (place, int(layer)) == (f"{row['rank']}{'=' if row['tied'] else ''}", row["layer"])
        numbers = [other.strip("[](),") for other in others]
        expected = [*(f"{row[key]:.2f}" for key in ("d_prime", "low", "high")), "0.004"]
        assert [number for number in numbers if number in expected][:4] == expected


def test_the_findings_are_below_the_table(layerscope: Program, record: CaptureRecord) -> None:
    assert record["ranking"] is not None
    shown = " ".join(layerscope("rank", "some_honesty").stdout.split())
    assert "someone/some-model, 72 pairs, positions: last" in shown
    assert "Highest: layer 17, held-out d' 1.50 (95% interval 1.00 to 2.00, leave-one-persona-out)" in shown
    assert "Layers 16-18 cannot be ordered: each may be the best (95%). The other 27 are behind." in shown
    assert "would have picked layer 29" in shown
    assert "warning: 3 templates are few" in shown


@pytest.mark.usefixtures("record")
def test_top_shows_the_first_and_counts_the_others(layerscope: Program) -> None:
    result = layerscope("rank", "some_honesty", "--top", "3")
    assert [line.split()[:2] for line in table_lines(result)] == [["1=", "17"], ["2=", "16"], ["3=", "18"]]
    assert "\nand 27 more\n" in re.sub(" +\n", "\n", result.stdout)
    assert "Layers 16-18 cannot be ordered" in " ".join(result.stdout.split())
    everything = layerscope("rank", "some_honesty", "--top", "99")
    assert len(table_lines(everything)) == 30
    assert " more\n" not in everything.stdout


def test_json_is_what_the_record_says(layerscope: Program, record: CaptureRecord) -> None:
    document = parsed(layerscope("rank", "some_honesty", "--json"))
    assert (document["capture"], document["score"]) == ("some_honesty", "d_prime")
    rows = {row["layer"]: dict(row) for row in record["statistics"]}
    assert document["layers"] == [rows[row["layer"]] | row for row in ranked_layers(record)]
    assert record["ranking"] is not None
    assert document["ranking"] == {key: value for key, value in record["ranking"].items() if key != "layers"}
    assert document["confounds"] == record["confounds"]


def test_csv_holds_the_same_numbers_as_json(layerscope: Program, record: CaptureRecord) -> None:
    rows = csv_rows(layerscope("rank", "some_honesty", "--csv"))
    layers = parsed(layerscope("rank", "some_honesty", "--json"))["layers"]
    assert len(rows) == len(record["statistics"]) == 30
    for row, layer in zip(rows, layers, strict=True):
        del layer["by_factor"]
        assert row == {key: str(value) for key, value in layer.items()}
    assert next(iter(rows[0])) == "rank"


@pytest.mark.usefixtures("record")
def test_json_and_csv_hold_no_more_than_the_top(layerscope: Program) -> None:
    assert [row["layer"] for row in csv_rows(layerscope("rank", "some_honesty", "--csv", "--top", "2"))] == ["17", "16"]
    layers = parsed(layerscope("rank", "some_honesty", "--json", "--top", "2"))["layers"]
    assert [layer["layer"] for layer in layers] == [17, 16]


@pytest.mark.parametrize("score", SCORES, ids=[score.key for score in SCORES])
def test_every_score_orders_the_layers_its_own_way(layerscope: Program, record: CaptureRecord, score: Any) -> None:
    document = parsed(layerscope("rank", "some_honesty", "--score", score.key, "--json"))
    values = [layer[score.key] for layer in document["layers"]]
    assert values == sorted(values, reverse=score.key not in {"wrong_way", "cosine_sim"})
    assert [layer["rank"] for layer in document["layers"]] == list(range(1, 31))
    assert document["score"] == score.key
    expected = {"pair_cosine": 12, "relative_norm": 21, "cosine_sim": 8, "diff_norm": 29}.get(score.key, 17)
    assert document["layers"][0]["layer"] == expected
    assert {layer["layer"]: layer["d_prime"] for layer in document["layers"]} == dict(enumerate(D_PRIMES))
    assert len(document["layers"]) == len(record["statistics"])


@pytest.mark.usefixtures("record")
@pytest.mark.parametrize(("score", "layer", "shown"), [("cosine_sim", "8", "0.900"), ("pair_cosine", "12", "0.900")])
def test_the_table_shows_the_score_that_it_is_ordered_by(
    layerscope: Program, score: str, layer: str, shown: str
) -> None:
    result = layerscope("rank", "some_honesty", "--score", score, "--top", "1")
    (line,) = table_lines(result)
    assert line.split()[1] == layer
    assert any(cell.startswith(shown) for cell in line.split())
    assert f"ordered by {score}" in result.stderr
    assert "held-out d'" in result.stderr  # the score of the intervals and ties


@pytest.mark.usefixtures("record")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--score", "aurok"], "there is no score 'aurok'. Expected: one of d_prime, auroc"),
        (["--score", "aurok"], "Next: did you mean 'auroc'?"),
        (["--json", "--csv"], "JSON and CSV cannot be printed together"),
        (["--top", "0"], "--top"),
    ],
)
def test_a_wrong_argument_ends_with_2(layerscope: Program, arguments: list[str], said: str) -> None:
    result = layerscope("rank", "some_honesty", *arguments)
    assert_failed(result, 2)
    assert said in result.stderr


@pytest.mark.parametrize("arguments", [[], ["--score", "diff_norm", "--json"]], ids=["table", "json"])
def test_prompts_have_nothing_to_rank(layerscope: Program, arguments: list[str]) -> None:
    save_record(prompt_record(), layerscope.folder / "activations")
    result = layerscope("rank", "some_prompt", *arguments)
    assert_failed(result, 2)
    assert "'some_prompt' is a capture of prompts: it has no positive and negative class" in result.stderr
    assert "layerscope capture --concept" in result.stderr


def test_too_few_pairs_have_no_held_out_scores(layerscope: Program) -> None:
    save_record(unranked_record(), layerscope.folder / "activations")
    result = layerscope("rank", "some_honesty")
    assert_failed(result, 2)
    assert f"'some_honesty' has no ranking: {TOO_FEW}. Expected: " in result.stderr
    assert "diff_norm" in result.stderr
    assert "Next: capture more" in result.stderr


def test_too_few_pairs_can_be_ordered_by_descriptive_scores(layerscope: Program) -> None:
    save_record(unranked_record(), layerscope.folder / "activations")
    arguments = ("rank", "some_honesty", "--score", "diff_norm")
    result = layerscope(*arguments)
    assert [line.split()[:2] for line in table_lines(result)] == [["1", "3"], ["2", "2"], ["3", "1"], ["4", "0"]]
    assert widest(result.stdout) <= 80
    assert f"warning: not ranked: {TOO_FEW}" in result.stdout
    assert "interval" not in result.stderr  # there are none
    document = parsed(layerscope(*arguments, "--json"))
    assert document["ranking"] is None
    assert [layer["diff_norm"] for layer in document["layers"]] == [2.0, 1.5, 1.0, 0.5]
    rows = csv_rows(layerscope(*arguments, "--csv"))
    assert [row["diff_norm"] for row in rows] == ["2.0", "1.5", "1.0", "0.5"]


@pytest.mark.usefixtures("record")
def test_a_missing_capture_ends_with_5(layerscope: Program) -> None:
    result = layerscope("rank", "some_empathy")
    assert_failed(result, 5)
    assert "there is no capture called 'some_empathy' in the folder 'activations'" in result.stderr
    assert "the folder 'activations'" in result.stderr
    assert "layerscope list" in result.stderr


@pytest.mark.usefixtures("record")
def test_an_invalid_name_ends_with_5(layerscope: Program) -> None:
    result = layerscope("rank", "some honesty")
    assert_failed(result, 5)
    assert "'some honesty' is not a valid capture name" in result.stderr


@pytest.mark.usefixtures("record")
def test_it_takes_a_name_in_a_store_or_the_path_of_either_file(layerscope: Program) -> None:
    named = layerscope("rank", "some_honesty", "--json")
    store = layerscope.folder / "activations"
    for path in ("activations/some_honesty.pt", str(store / "some_honesty.json"), "activations/some_honesty"):
        assert parsed(layerscope("rank", path, "--json")) == parsed(named)
    elsewhere = Program(layerscope.folder.parent)
    assert elsewhere("rank", "some_honesty", "--json", "--store", str(store)).stdout == named.stdout


def test_eighty_layers_of_large_states_fit_80_columns(layerscope: Program) -> None:
    d_primes = [-12.0 - layer / 10 for layer in range(80)]
    ranking = ranking_of(d_primes, tied=range(70), p_values=[1e-4] * 80, half=9.0)
    save_record(contrast_record(contrast_rows([0.1] * 80, scale=1e6), ranking), layerscope.folder / "activations")
    result = layerscope("rank", "some_honesty")
    assert len(table_lines(result)) == 80
    assert widest(result.stdout) <= 80
    assert "…" not in result.stdout


def test_a_real_capture_is_ranked_as_the_engine_ranks_it(ranked_run: Run) -> None:
    """From model to table: the same seed gives the same ranking."""
    assert ranked_run.result.returncode == 0, ranked_run.result.stderr
    data = engine.load_activations(ranked_run.path)
    assert "positive" in data
    ranking = engine.rank_layers(data)
    program = Program(ranked_run.path.parent.parent)
    document = parsed(program("rank", "ranked", "--json"))
    assert [layer["layer"] for layer in document["layers"]] == [layer["layer"] for layer in ranking["layers"]]
    assert [layer["low"] for layer in document["layers"]] == [layer["low"] for layer in ranking["layers"]]
    assert document["ranking"]["groups"].keys() == {"persona", "template", "topic"}
    assert document["confounds"] == engine.find_confounds(data, ranking)
    assert json.loads(ranked_run.record.read_text())["ranking"] == ranking
    table = program("rank", str(Path("activations") / "ranked.pt"))
    assert [int(line.split()[1]) for line in table_lines(table)] == [layer["layer"] for layer in ranking["layers"]]
    assert widest(table.stdout) <= 80


def test_tensors_whose_record_is_gone_are_ranked_without_factors(layerscope: Program, ranked_run: Run) -> None:
    (layerscope.folder / "mine.pt").write_bytes(ranked_run.tensors.read_bytes())
    result = layerscope("rank", "mine.pt", "--json")
    assert result.returncode == 0
    assert "no JSON record" in result.stderr
    document = json.loads(result.stdout)
    assert {layer["left_out"] for layer in document["layers"]} == {"pairs"}
    assert {layer["layer"] for layer in document["layers"]} == {4, 16, 29}


# What steering does


def causally(layerscope: Program, folder: Path, *more: str) -> Result:
    how = ("--causal", "--layers", "1,2", "--prompts", "8", "--answer-tokens", "3", "--model", str(folder))
    return layerscope("rank", "loudness", *how, *more)


def test_causal_measures_keeps_and_shows(layerscope: Program, contrasts: Path, tiny_folder: Path) -> None:
    result = causally(layerscope, tiny_folder, "--json")
    assert result.returncode == 0, result.stderr
    said = " ".join(result.stderr.split())
    assert re.search(r"steering at 2 layers, in 26 ways, .* about \d+ s, plus the time to ablate where it has", said)
    causal = json.loads(result.stdout)["causal"]
    model, tokenizer, _ = engine.load_model_and_tokenizer(str(tiny_folder))
    request = engine.CausalRequest(layers="1,2", prompts=8, answer_tokens=3)
    expected = engine.rank_layers_causally(model, tokenizer, load_contrast(contrasts / "loudness"), request)
    assert [row["layer"] for row in causal["layers"]] == [1, 2]
    for row, other in zip(causal["layers"], expected["layers"], strict=True):
        assert row["effect"] == pytest.approx(other["effect"], abs=1e-5)
    shown = layerscope("rank", "loudness", COLUMNS="80")
    assert "reading and cause, steering by 0.1" in shown.stdout
    assert widest(shown.stdout) <= 80
    assert f"{causal['layers'][0]['effect']:+.3f}" in shown.stdout
    listed = list(csv.DictReader(io.StringIO(layerscope("rank", "loudness", "--csv").stdout)))
    by_layer = {int(row["layer"]): row["causal_effect"] for row in listed}
    assert float(by_layer[1]) == causal["layers"][0]["effect"]
    assert by_layer[0] == ""
    assert "Measured on" in layerscope("show", "loudness").stdout
    again = causally(layerscope, tiny_folder, "--layers", "1", "--no-ablation")
    assert "replaces the causal ranking of 2 layers in the record" in again.stderr
    assert "to ablate" not in again.stderr
    figure = layerscope("visualize", "loudness", "--causal", "--output", "causal.png")
    assert figure.returncode == 0
    assert (layerscope.folder / "causal.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.usefixtures("contrasts")
def test_ctrl_c_during_a_causal_ranking_is_said_once(
    layerscope: Program, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("engine.steering.causal_store.add_causal_ranking", interrupted)
    stopped = causally(layerscope, tiny_folder)
    assert stopped.returncode == 130
    assert stopped.stderr.count("interrupted") == 1
    assert "the measured parts are kept; run the same command again to resume" in stopped.stderr


def test_too_few_pairs_of_a_file_are_to_be_added_to_the_file(layerscope: Program, tiny_folder: Path) -> None:
    (layerscope.folder / "two.csv").write_text("positive,negative\nw5 w9,w15 w9\nw6 w9,w16 w9\n")
    captured = layerscope("capture", "--model", str(tiny_folder), "--pairs", "two.csv", "--output", "two")
    assert captured.returncode == 0, captured.stderr
    refused = layerscope("rank", "two.pt")
    assert "Next: add pairs to the file, and capture it again." in refused.stderr
    assert "--max-samples" not in captured.stderr + refused.stderr


def test_a_result_that_cannot_be_kept_is_refused_before_the_run(
    layerscope: Program, contrasts: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = os.access

    def denied(path: str | Path, mode: int) -> bool:
        return access(path, mode) and not (mode == os.W_OK and Path(path).samefile(contrasts))

    monkeypatch.setattr("os.access", denied)
    for command in (("rank", "loudness", "--causal"), ("specificity", "loudness")):
        refused = layerscope(*command, "--model", str(tiny_folder))
        assert_failed(refused, 5)
        assert "the result could not be kept: activations is not a writable folder" in refused.stderr
        assert "chmod u+w" in refused.stderr
        assert "--store" in refused.stderr
        assert "--output" not in refused.stderr
        assert "loading" not in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strength", "0.2"], "which needs --causal"),
        (["--no-ablation"], "which needs --causal"),
        (["--causal", "--controls", "3"], "the number of controls"),
        (["--causal", "--strength", "-1"], "the strength cannot be -1"),
        (["--causal", "--layers", "9", "--model", "TINY"], "layer 9 is out of range"),
        (["--causal", "--neutral", "missing.txt"], "missing.txt"),
        (["--causal", "--neutral", "notes.md"], "'notes.md' is not a supported file type"),
        (["--causal", "--controls", "100000"], "the number of controls cannot be 100000"),
    ],
    ids=["strength", "ablation", "controls", "negative", "layer", "file", "type", "many"],
)
def test_wrong_causal_options_are_refused(
    layerscope: Program, contrasts: Path, tiny_folder: Path, arguments: list[str], message: str
) -> None:
    del contrasts
    named = [str(tiny_folder) if argument == "TINY" else argument for argument in arguments]
    result = layerscope("rank", "loudness", *named)
    assert result.returncode != 0
    assert message in result.stderr


def test_a_figure_before_the_measurement_says_what_to_do(layerscope: Program, contrasts: Path) -> None:
    del contrasts
    result = layerscope("visualize", "loudness", "--causal")
    assert result.returncode != 0
    assert "Next: layerscope rank loudness --causal" in result.stderr
