"""`layerscope visualize`: text that fits 80 columns, figures in files, and what is said when there is no display."""

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib.image
import pytest

from tests.engine.cli.conftest import Program, assert_failed, widest

HONESTY = "activations/smollm2_honesty.pt"


def table_rows(text: str) -> list[str]:
    """The lines of the layer table, which begin with a number."""
    return [line for line in text.splitlines() if re.match(r" *\d+ +[-+\d]", line)]


def test_the_text_ranks_the_layers_as_the_record_does(layerscope: Program, store: Path) -> None:
    result = layerscope("visualize", HONESTY, "--no-plot")
    assert (result.returncode, result.stderr) == (0, "")
    assert widest(result.stdout) <= 80
    statistics = json.loads((store / "smollm2_honesty.json").read_text())["statistics"]
    best = sorted(statistics, key=lambda row: -row["relative_norm"])[:5]
    ranked = ", ".join(str(row["layer"]) for row in best)
    assert f"Layers by relative norm: {ranked} and 25 more\n" in result.stdout
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
    assert "Layers by relative norm" in result.stdout
    pixels = matplotlib.image.imread(layerscope.folder / "figures/honesty.png")
    assert pixels.shape[1] > 1000
    assert (
        len({tuple(pixel) for pixel in pixels.reshape(-1, pixels.shape[-1]).tolist()}) > 3
    )  # more than black on white


@pytest.mark.usefixtures("store")
def test_an_svg_is_drawn_with_text_that_can_be_read(layerscope: Program) -> None:
    result = layerscope("visualize", HONESTY, "--output", "honesty.svg", "--quiet")
    assert (result.returncode, result.stderr) == (0, "")
    root = ET.parse(layerscope.folder / "honesty.svg").getroot()  # noqa: S314 - the program wrote it
    words = " ".join("".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text"))
    for title in ("honesty", "Relative norm", "Layers by relative norm", "Difference norm", "Cosine"):
        assert title in words


@pytest.mark.usefixtures("store")
def test_without_a_display_the_text_is_shown_and_the_rest_is_said(layerscope: Program) -> None:
    result = layerscope("visualize", HONESTY)
    assert result.returncode == 0
    assert result.stdout == layerscope("visualize", HONESTY, "--no-plot").stdout
    assert "there is no display to open a window on" in result.stderr
    assert "--output FILE.png" in result.stderr


def test_a_missing_file_ends_with_5(layerscope: Program) -> None:
    result = layerscope("visualize", HONESTY)
    assert_failed(result, 5)
    assert "there is no capture called 'smollm2_honesty' in the folder 'activations'" in result.stderr


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
    assert "no record beside it" in result.stderr
    assert (layerscope.folder / "honesty.png").stat().st_size > 0


def test_a_damaged_file_whose_record_is_gone_ends_with_5(layerscope: Program) -> None:
    (layerscope.folder / "mine.pt").write_bytes(b"not a capture")
    result = layerscope("visualize", "mine.pt")
    assert_failed(result, 5)
    assert "mine.pt is damaged" in result.stderr
