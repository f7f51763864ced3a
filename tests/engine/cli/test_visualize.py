"""`layerscope visualize`: text in 80 columns, figures in files, and the message without a display."""

import json
import re
from pathlib import Path

import matplotlib.image
import pytest

import engine
from engine.records.results import may_be_best
from engine.stats.scores import wrong_pairs
from engine.store.read import load_contrast
from tests.engine.cli.conftest import assert_failed, save_record, widest
from tests.engine.plots.pictures import svg_words
from tests.engine.plots.records import contrast_record
from tests.program import Program, Run

HONESTY = "activations/smollm2_honesty.pt"


def table_rows(text: str) -> list[str]:
    """The lines of the layer table, which start with a number."""
    return [line for line in text.splitlines() if re.match(r" *\d+ +[-+\d]", line)]


def test_the_text_shows_the_ranking_of_the_record(ranked_run: Run) -> None:
    result = Program(ranked_run.path.parent.parent)("visualize", "ranked", "--no-plot")
    assert (result.returncode, result.stderr) == (0, "")
    assert widest(result.stdout) <= 80
    record = json.loads(ranked_run.record.read_text())
    ranked = sorted(record["ranking"]["layers"], key=lambda row: int(row["layer"]))
    for row, line in zip(ranked, table_rows(result.stdout), strict=True):
        shown = f"{row['layer']} {row['rank']}{'=' if may_be_best(row) else ''} {row['rank_low']}-{row['rank_high']}"
        scores = f"{row['d_prime']:.2f} {row['low']:.2f} to {row['high']:.2f}"
        assert line.split()[:7] == f"{shown} {scores}".split()
        assert line.count("●") == 1
    assert result.stdout == ranked_run.result.stdout  # the capture printed the same


def test_a_name_in_a_store_and_a_path_show_the_same(layerscope: Program) -> None:
    save_record(contrast_record(), layerscope.folder / "runs")
    by_path = layerscope("visualize", "runs/some_honesty.json", "--no-plot")
    by_name = layerscope("visualize", "some_honesty", "--no-plot", "--store", "runs")
    assert by_path.returncode == by_name.returncode == 0
    assert by_path.stdout == by_name.stdout != ""
    assert_failed(layerscope("visualize", "some_honesty", "--no-plot"), 5)


def test_too_few_pairs_have_their_norms_and_the_reason(layerscope: Program, store: Path) -> None:
    result = layerscope("visualize", HONESTY, "--no-plot")
    assert (result.returncode, result.stderr) == (0, "")
    assert widest(result.stdout) <= 80
    assert "warning: not ranked: 2 pairs are too few to rank layers" in result.stdout
    statistics = json.loads((store / "smollm2_honesty.json").read_text())["statistics"]
    for row, line in zip(statistics, table_rows(result.stdout), strict=True):
        shown = f"{row['layer']} {row['diff_norm']:.3f} {row['relative_norm']:.4f} {row['cosine_sim']:.5f}"
        assert line.split()[:4] == shown.split()


def test_prompts_have_norms_and_no_ranking(layerscope: Program, store: Path) -> None:
    result = layerscope("visualize", str(store / "smollm2_prompt.json"), "--no-plot")
    assert result.returncode == 0
    assert "relative" not in result.stdout
    assert len(table_rows(result.stdout)) == 30
    assert widest(result.stdout) <= 80


@pytest.mark.usefixtures("store")
def test_a_png_is_drawn(layerscope: Program) -> None:
    result = layerscope("visualize", HONESTY, "--output", "figures/honesty.png")
    assert (result.returncode, result.stderr) == (0, "saved figures/honesty.png\n")
    assert len(table_rows(result.stdout)) == 30
    pixels = matplotlib.image.imread(layerscope.folder / "figures/honesty.png")
    assert pixels.shape[1] > 1000
    assert (
        len({tuple(pixel) for pixel in pixels.reshape(-1, pixels.shape[-1]).tolist()}) > 3
    )  # more than black on white


def test_an_svg_is_drawn_with_text_that_can_be_read(layerscope: Program) -> None:
    save_record(contrast_record(), layerscope.folder / "activations")
    result = layerscope("visualize", "some_honesty", "--output", "honesty.svg", "--quiet")
    assert (result.returncode, result.stderr) == (0, "")
    words = " ".join(svg_words(layerscope.folder / "honesty.svg"))
    for title in ("honesty", "Held-out d'", "Layers by rank", "Raw difference norm", "Cosine", "permutation null"):
        assert title in words


@pytest.mark.usefixtures("store")
def test_without_a_display_the_text_and_an_error_are_printed(layerscope: Program) -> None:
    result = layerscope.child("visualize", HONESTY)  # matplotlib looks for a display once per process
    assert result.returncode == 0
    assert result.stdout == layerscope("visualize", HONESTY, "--no-plot").stdout
    assert "there is no display to open a window on" in result.stderr
    assert "--output FILE.png" in result.stderr


def test_one_layer_shows_the_projections(layerscope: Program, contrasts: Path) -> None:
    result = layerscope("visualize", "loudness", "--layer", "2", "--no-plot")
    assert (result.returncode, result.stderr) == (0, "")
    assert widest(result.stdout) <= 80
    data = load_contrast(contrasts / "loudness")
    sides = engine.project_sides(data, 2)
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    heading, score = f"leave-one-{sides['left_out']}-out: d' {sides['d_prime']:.2f}", f"AUROC {sides['auroc']:.3f}"
    assert lines[:2] == ["loudness, layer 2", f"{heading}, {score}"]
    wrong = wrong_pairs(sides)
    assert f"{len(wrong)} of 24 held-out pairs are misordered." in lines
    named = [f"pair {pair} " for pair in wrong[:5]]
    assert [line.strip().partition("(")[0] for line in lines if line.startswith("  pair")] == named
    by_path = layerscope("visualize", "activations/loudness.pt", "--layer", "2", "--no-plot")
    assert by_path.stdout == result.stdout


@pytest.mark.usefixtures("contrasts")
def test_one_layer_is_drawn(layerscope: Program) -> None:
    result = layerscope("visualize", "loudness", "--layer", "2", "--output", "sides.svg")
    assert (result.returncode, result.stderr) == (0, "saved sides.svg\n")
    words = svg_words(layerscope.folder / "sides.svg")
    assert {"loudness", "positive class", "negative class", "pair"} <= set(words)
    assert any(word.startswith("layer 2, leave-one-") for word in words)
    png = layerscope("visualize", "loudness", "--layer", "2", "--output", "sides.png", "--quiet")
    assert (png.returncode, png.stderr, png.stdout) == (0, "", result.stdout)
    assert matplotlib.image.imread(layerscope.folder / "sides.png").shape[1] > 1000


def test_misordered_pairs_can_be_identified(ranked_run: Run) -> None:
    """The excerpt of a prompt omits the chat header that all prompts share."""
    result = Program(ranked_run.path.parent.parent)("visualize", "ranked", "--layer", "4", "--no-plot")
    assert (result.returncode, result.stderr) == (0, "")
    assert widest(result.stdout) <= 80
    named = [line.partition("): ")[2] for line in result.stdout.splitlines() if line.startswith("  pair")]
    assert len(set(named)) == len(named)


@pytest.mark.usefixtures("contrasts")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["loudness", "--layer", "9"], "layer 9 was not captured. Expected: one of [0, 1, 2, 3]"),
        (["loudness", "--layer", "-1"], "layer -1 was not captured"),
        (["prompt", "--layer", "2"], "is a capture of prompts: it has no positive and negative class"),
    ],
)
def test_a_layer_where_the_classes_do_not_differ_ends_with_2(
    layerscope: Program, arguments: list[str], said: str
) -> None:
    result = layerscope("visualize", *arguments, "--output", "sides.png")
    assert_failed(result, 2)
    assert said in result.stderr
    assert not (layerscope.folder / "sides.png").exists()


@pytest.mark.usefixtures("store")
def test_too_few_pairs_have_no_projections_to_show(layerscope: Program) -> None:
    result = layerscope("visualize", HONESTY, "--layer", "16", "--no-plot")
    assert_failed(result, 2)
    assert "2 pairs are too few" in result.stderr
    assert "capture more pairs" in result.stderr


def test_a_missing_file_ends_with_5(layerscope: Program) -> None:
    result = layerscope("visualize", HONESTY)
    assert_failed(result, 5)
    assert "there is no capture called 'smollm2_honesty' in the folder 'activations'" in result.stderr


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("more", [[], ["--causal"]])
def test_a_figure_that_is_not_drawn_ends_with_2(layerscope: Program, more: list[str]) -> None:
    result = layerscope("visualize", HONESTY, "--no-plot", "--output", "honesty.png", *more)
    assert_failed(result, 2)
    assert "--no-plot draws no figure for --output. Next: omit one or the other" in result.stderr


@pytest.mark.usefixtures("store")
def test_an_unknown_kind_of_picture_ends_with_2(layerscope: Program) -> None:
    result = layerscope("visualize", HONESTY, "--output", "honesty.txt")
    assert result.returncode == 2
    assert ".png, .svg, .pdf" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (layerscope.folder / "honesty.txt").exists()


def test_tensors_whose_record_is_gone_are_still_drawn(layerscope: Program, store: Path) -> None:
    with_record = layerscope("visualize", HONESTY, "--no-plot")
    (store / "smollm2_honesty.json").unlink()
    result = layerscope("visualize", HONESTY, "--output", "honesty.png")
    assert result.returncode == 0
    assert table_rows(result.stdout) == table_rows(with_record.stdout)
    assert "no JSON record" in result.stderr
    assert (layerscope.folder / "honesty.png").stat().st_size > 0


def test_a_damaged_file_whose_record_is_gone_ends_with_5(layerscope: Program) -> None:
    (layerscope.folder / "mine.pt").write_bytes(b"not a capture")
    result = layerscope("visualize", "mine.pt")
    assert_failed(result, 5)
    assert "mine.pt is damaged" in result.stderr
