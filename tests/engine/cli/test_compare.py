"""`layerscope compare`: text, JSON, figure and errors."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

import engine
from engine.records.files import CaptureRecord
from engine.store.catalog import show_capture
from engine.store.read import load_contrast
from tests.engine.cli.conftest import assert_failed, save_record, widest
from tests.engine.plots.pictures import svg_words
from tests.engine.plots.records import contrast_record, ranking_of
from tests.engine.stats.captures import provenance
from tests.program import Program, Result


def parsed(result: Result) -> dict[str, Any]:
    assert (result.returncode, result.stderr) == (0, "")
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def table_lines(result: Result) -> list[str]:
    """The lines of layers, which start with a number."""
    assert result.returncode == 0, result.stderr
    return [line for line in result.stdout.splitlines() if re.match(r" *\d+%? +[-+\d]", line)]


def large_record(d_primes: list[float], name: str = "large_honesty", **changes: Any) -> CaptureRecord:
    """A record of honesty on another model."""
    record = contrast_record(ranking=ranking_of(d_primes))
    record["name"] = name
    record["data"]["name"] = f"{name}.pt"
    record["provenance"] = provenance(**{"model": "someone/large", "alias": "large", "positions": "last"} | changes)
    return record


@pytest.fixture
def two_models(layerscope: Program) -> Path:
    """One concept on two models, from records alone: there are no tensors to read."""
    store = layerscope.folder / "activations"
    save_record(contrast_record(), store)
    save_record(large_record([0.1, 0.2, 0.9, 2.5, 2.0, 1.0, 0.5, 0.3]), store)
    return store


@pytest.mark.usefixtures("contrasts")
def test_two_concepts_on_one_model(layerscope: Program) -> None:
    result = layerscope("compare", "loudness", "warmth")
    assert (result.returncode, result.stderr) == (0, "")
    assert widest(result.stdout) <= 80
    assert result.stdout.startswith("loudness and warmth")
    shown = parsed(layerscope("compare", "loudness", "warmth", "--json"))
    assert (shown["kind"], shown["titles"], shown["depths"]) == ("directions", ["loudness", "warmth"], [])
    lines = table_lines(result)
    for line, row in zip(lines, shown["directions"], strict=True):
        numbers = [str(row["layer"]), f"{row['cosine']:+.2f}", f"±{row['chance']:.2f}", f"{row['ceiling']:.2f}"]
        numbers += [f"{row[way]['auroc']:.2f}" for way in ("transfer", "back")]
        assert line.split()[:6] == numbers
        assert line.count("●") == 1
    assert "the loudness and warmth directions" in " ".join(result.stdout.split())


def test_the_output_matches_the_engine(layerscope: Program, contrasts: Path) -> None:
    shown = parsed(layerscope("compare", "loudness", "warmth", "--json"))
    expected = engine.compare_directions(load_contrast(contrasts / "loudness"), load_contrast(contrasts / "warmth"))
    assert shown["directions"] == json.loads(json.dumps(expected))
    records = show_capture(contrasts / "loudness"), show_capture(contrasts / "warmth")
    whole = engine.compare_captures(*records, lambda record: load_contrast(contrasts / record["name"]))
    assert shown == json.loads(json.dumps(whole))


def test_names_and_paths_show_the_same(layerscope: Program, contrasts: Path) -> None:
    named = layerscope("compare", "loudness", "warmth").stdout
    paths = layerscope("compare", "activations/loudness.pt", str(contrasts / "warmth.json"))
    assert paths.stdout == named != ""
    elsewhere = Program(layerscope.folder.parent)
    assert elsewhere("compare", "loudness", "warmth", "--store", str(contrasts)).stdout == named


def test_captures_of_the_same_name_in_two_stores_are_distinguished(layerscope: Program, contrasts: Path) -> None:
    """`runs/a/mine` and `runs/b/mine`: the second must not be compared with itself."""
    for store, concept in (("a", "loudness"), ("b", "warmth")):
        (layerscope.folder / store).mkdir()
        engine.save_activations(load_contrast(contrasts / concept), layerscope.folder / store / "mine")
    shown = parsed(layerscope("compare", "a/mine", "b/mine", "--json"))
    named = parsed(layerscope("compare", "loudness", "warmth", "--json"))
    assert shown["titles"] == ["loudness", "warmth"]
    assert [row["cosine"] for row in shown["directions"]] == [row["cosine"] for row in named["directions"]]


def test_models_with_the_same_capture_name_are_distinguished(layerscope: Program) -> None:
    save_record(large_record([0.1, 2.0, 0.3], "mine", model="someone/small"), layerscope.folder / "a")
    save_record(large_record([0.1, 0.2, 0.3, 1.0], "mine"), layerscope.folder / "b")
    lines = table_lines(layerscope("compare", "a/mine", "b/mine"))
    assert [line.split()[1].strip("=") for line in lines] == ["0", "1", "2"]


def test_a_capture_of_some_of_the_pairs_is_compared_with_a_warning(layerscope: Program, contrasts: Path) -> None:
    whole = load_contrast(contrasts / "loudness")
    part = whole.copy()
    part["positive"], part["negative"], part["num_pairs"] = whole["positive"][:8], whole["negative"][:8], 8
    part["factors"] = whole["factors"][:8]
    engine.save_activations(part, "part", store=contrasts)
    said = " ".join(layerscope("compare", "loudness", "part").stdout.split())
    assert "warning: 8 of 8 pairs of part share a prompt with loudness, whose direction sorts them in-sample" in said
    assert f"warning: 8 of {whole['num_pairs']} pairs of loudness share a prompt with part" in said
    assert "in-sample AUROC" in said


@pytest.mark.usefixtures("contrasts")
def test_a_capture_compared_with_itself_has_cosine_one(layerscope: Program) -> None:
    shown = parsed(layerscope("compare", "loudness", "loudness", "--json"))
    assert [row["cosine"] for row in shown["directions"]] == pytest.approx([1.0] * 4)


@pytest.mark.usefixtures("contrasts")
def test_only_layers_that_both_have_are_compared(layerscope: Program) -> None:
    shown = parsed(layerscope("compare", "loudness", "loudness_low", "--json"))
    assert [row["layer"] for row in shown["directions"]] == [0, 1]


@pytest.mark.usefixtures("two_models")
def test_one_concept_on_two_models_by_depth(layerscope: Program) -> None:
    result = layerscope("compare", "some_honesty", "large_honesty")
    assert (result.returncode, result.stderr) == (0, "")
    assert widest(result.stdout) <= 80
    assert result.stdout.startswith("someone/some-model and someone/large")
    shown = " ".join(result.stdout.split())
    assert "someone/some-model: layer 1 leads at 50% depth (d' 2.00)" in shown
    assert "someone/large: layer 3 leads at 50% depth (d' 2.50)" in shown
    assert [line.split()[0] for line in table_lines(result)] == ["25%", "50%", "75%", "100%"]
    document = parsed(layerscope("compare", "some_honesty", "large_honesty", "--json"))
    assert (document["kind"], document["directions"], len(document["depths"])) == ("depth", [], 12)
    assert {row["capture"] for row in document["depths"]} == {"some_honesty", "large_honesty"}


@pytest.mark.usefixtures("contrasts")
def test_real_captures_of_two_models(layerscope: Program) -> None:
    """Different numbers of layers, from the same pairs."""
    result = layerscope("compare", "loudness", "small_loudness")
    assert [line.split()[0] for line in table_lines(result)] == ["25%", "50%", "75%", "100%"]
    assert "warning" not in result.stdout
    assert "tiny: layer" in result.stdout
    assert "small: layer" in result.stdout


def test_different_pairs_cause_a_warning(layerscope: Program, two_models: Path) -> None:
    record = large_record([0.1, 0.2])
    record["factors"] = [{"template": "t", "persona": "p", "topic": "x"}] * 72
    save_record(record, two_models)
    result = layerscope("compare", "some_honesty", "large_honesty")
    assert "warning: they were not made from the same pairs" in result.stdout


def test_a_different_dtype_causes_a_warning(layerscope: Program, contrasts: Path) -> None:
    path = contrasts / "warmth.json"
    path.write_text(path.read_text().replace('"dtype": "float32"', '"dtype": "bfloat16"', 1))
    result = layerscope("compare", "loudness", "warmth")
    assert result.returncode == 0
    assert "warning: they differ in dtype: float32 and bfloat16" in result.stdout


@pytest.mark.usefixtures("contrasts")
def test_a_png_is_drawn(layerscope: Program) -> None:
    result = layerscope("compare", "loudness", "warmth", "--output", "figures/cosines.png")
    assert (result.returncode, result.stderr) == (0, "saved figures/cosines.png\n")
    assert len(table_lines(result)) == 4
    assert matplotlib.image.imread(layerscope.folder / "figures/cosines.png").shape[1] > 1000


@pytest.mark.usefixtures("two_models")
def test_an_svg_of_two_models_is_drawn_and_json_stays_json(layerscope: Program) -> None:
    result = layerscope("compare", "some_honesty", "large_honesty", "--json", "--output", "depths.svg")
    assert result.returncode == 0
    assert json.loads(result.stdout)["kind"] == "depth"
    assert "Held-out d' with 95% intervals" in svg_words(layerscope.folder / "depths.svg")


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (
            "loudness",
            "loudness_all",
            "differ in site or positions: resid_post, positions last, and resid_post, positions",
        ),
        ("loudness", "small_calm", "differ in model (tiny and small) and in concept (loudness and calm)"),
        ("loudness", "loudness_few", "5 pairs are too few to compare directions. Expected: at least 6 pairs"),
        ("loudness_low", "loudness_high", "the captures share no layer: one has [0, 1], the other [2, 3]"),
        ("loudness", "prompt", "prompt is a capture of prompts: it has no direction"),
        ("prompt", "loudness", "prompt is a capture of prompts: it has no direction"),
    ],
)
@pytest.mark.usefixtures("contrasts")
def test_incomparable_captures_end_with_2_and_the_difference(
    layerscope: Program, one: str, other: str, said: str
) -> None:
    result = layerscope("compare", one, other, "--output", "figure.png")
    assert_failed(result, 2)
    assert said in result.stderr
    assert not (layerscope.folder / "figure.png").exists()


def test_a_model_whose_layers_were_not_ranked_ends_with_2(layerscope: Program, two_models: Path) -> None:
    record = large_record([0.1, 0.2])
    record["ranking"], record["unranked"] = None, "2 pairs are too few to rank layers by"
    save_record(record, two_models)
    result = layerscope("compare", "some_honesty", "large_honesty")
    assert_failed(result, 2)
    assert "large_honesty has no ranking: 2 pairs are too few to rank layers by" in result.stderr


def test_captures_of_unknown_origin_end_with_2(layerscope: Program, contrasts: Path) -> None:
    shutil.copyfile(contrasts / "warmth.pt", layerscope.folder / "alone.pt")
    result = layerscope("compare", "loudness", "alone.pt")
    assert_failed(result, 2)
    assert "alone has no provenance" in result.stderr


@pytest.mark.usefixtures("contrasts")
def test_a_missing_capture_ends_with_5(layerscope: Program) -> None:
    for names in (("loudness", "nothing"), ("nothing", "loudness")):
        result = layerscope("compare", *names)
        assert_failed(result, 5)
        assert "there is no capture called 'nothing' in the folder 'activations'" in result.stderr


def test_a_damaged_capture_ends_with_5(layerscope: Program, contrasts: Path) -> None:
    content = (contrasts / "warmth.pt").read_bytes()
    (contrasts / "warmth.pt").write_bytes(b"x" * len(content))
    result = layerscope("compare", "loudness", "warmth")
    assert_failed(result, 5)
    assert "warmth.json does not match the tensors in activations/warmth.pt" in result.stderr


@pytest.mark.usefixtures("contrasts")
def test_an_unknown_kind_of_picture_ends_with_2(layerscope: Program) -> None:
    result = layerscope("compare", "loudness", "warmth", "--output", "cosines.txt")
    assert result.returncode == 2
    assert ".png, .svg, .pdf" in result.stderr
    assert not (layerscope.folder / "cosines.txt").exists()
