"""Saving and showing figures: format, size, searchable text and errors."""

import struct
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from engine.errors import RequestError, StoreError
from engine.plots.style import head, label_layers, save_figure, show_figure
from tests.engine.plots.pictures import svg_words


def plain_figure(title: str = "honesty", figure: Figure | None = None) -> Figure:
    drawn = figure or Figure(figsize=(7.2, 4.8))
    head(drawn, title, "8 pairs")
    axes = drawn.subplots()
    axes.plot([14, 15, 16], [0.0, 1.0, 0.5])
    label_layers(axes, "Held-out d'", "layer (output of block)")
    return drawn


@pytest.mark.parametrize(("dpi", "size"), [(200, (1440, 960)), (100, (720, 480))])
def test_a_png_has_the_requested_size(tmp_path: Path, dpi: int, size: tuple[int, int]) -> None:
    content = save_figure(plain_figure, tmp_path / "chart.png", dpi=dpi).read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", content[16:24]) == size


def test_an_svg_contains_searchable_text(tmp_path: Path) -> None:
    words = svg_words(save_figure(plain_figure, tmp_path / "chart.svg"))
    assert {"honesty", "8 pairs", "Held-out d'", "layer (output of block)"} <= set(words)


def test_the_layer_axis_has_a_default_label() -> None:
    axes = Figure().subplots()
    label_layers(axes, "Cosine")
    assert axes.get_xlabel() == "layer"


def test_a_pdf_is_written(tmp_path: Path) -> None:
    assert save_figure(plain_figure, tmp_path / "chart.PDF").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_a_file_stores_its_title(tmp_path: Path, suffix: str) -> None:
    path = save_figure(plain_figure, tmp_path / f"chart{suffix}", title="honesty: 8 pairs, kept inside")
    assert b"honesty: 8 pairs, kept inside" in path.read_bytes()


@pytest.mark.parametrize("title", ["5 < 6 & 7", "cost: $5 or $6", "$_$", "50% \\frac{"])
def test_a_title_is_drawn_literally(tmp_path: Path, title: str) -> None:
    assert title in svg_words(save_figure(partial(plain_figure, title), tmp_path / "chart.svg"))


def test_layer_ticks_are_integers() -> None:
    figure = plain_figure()
    figure.draw_without_rendering()
    ticks = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert ticks
    assert all(tick.isdigit() for tick in ticks)


def test_missing_folders_are_created(tmp_path: Path) -> None:
    path = save_figure(plain_figure, tmp_path / "figures" / "new" / "chart.png")
    assert path == tmp_path / "figures" / "new" / "chart.png"
    assert path.is_file()


@pytest.mark.parametrize("name", ["chart", "chart.jpg", "chart.png.txt"])
def test_an_unsupported_suffix_writes_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match=rf"'{name}' has no supported image format.*\.png, \.svg, \.pdf"):
        save_figure(plain_figure, tmp_path / "new" / name)
    assert list(tmp_path.iterdir()) == []


def test_a_figure_that_another_save_overtakes_stays_whole(tmp_path: Path) -> None:
    """Neither of two saves of one file touches what the other publishes."""
    path, seen = tmp_path / "chart.png", list[bytes]()

    class Written(Figure):
        def __init__(self, content: str, then: Callable[[], object] | None = None) -> None:
            super().__init__()
            self.content, self.then = content.encode(), then

        def savefig(self, target: Any, **_options: Any) -> None:  # type: ignore[override]
            with target.open("wb") if isinstance(target, Path) else nullcontext(target) as out:
                out.write(self.content[:4])
                out.flush()
                if self.then:
                    self.then()
                out.write(self.content[4:])

    def overtake() -> None:
        save_figure(lambda: Written("overtook"), path)
        seen.append(path.read_bytes())

    save_figure(lambda: Written("last one", overtake), path)
    assert (seen, path.read_bytes()) == ([b"overtook"], b"last one")
    assert [file.name for file in tmp_path.iterdir()] == ["chart.png"]


def test_a_write_error_names_the_path(tmp_path: Path) -> None:
    """A file in place of the folder blocks every user, including root."""
    (tmp_path / "figures").write_text("not a folder")
    with pytest.raises(StoreError, match=r"figures/chart\.png cannot be written: \w.*choose another path"):
        save_figure(plain_figure, tmp_path / "figures" / "chart.png")


def test_saving_does_not_change_the_global_style(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    save_figure(plain_figure, tmp_path / "chart.svg")
    assert dict(mpl.rcParams) == before


def test_without_a_display_the_error_suggests_save_figure() -> None:
    with mpl.rc_context({"backend": "agg"}), pytest.raises(RequestError, match=r"no display.*save_figure"):
        show_figure(partial(plain_figure, "honesty"))
