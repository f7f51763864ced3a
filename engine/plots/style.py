"""One style for every figure: readable in print, told apart by colour-blind readers. Knows matplotlib and files."""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from engine.errors import Remedy, RequestError, StoreError
from engine.inputs import user_path

# Okabe and Ito's palette: told apart by colour-blind readers, and in grey by its lightness.
BLUE, ORANGE, GREEN, PURPLE, GREY, INK = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#8c8c8c", "#222222"
BAND = "#dddddd"
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "legend.fontsize": 7,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}
_FORMATS = (".png", ".svg", ".pdf")


def save_figure(draw: Callable[[], Figure], path: str | Path, *, title: str = "", dpi: int = 200) -> Path:
    """Draw a figure into a file; the suffix says the format.

    Args:
        draw: Makes the figure.
        path: Where to; `.png`, `.svg` or `.pdf`.
        title: Kept inside the file, where it survives the file being renamed.
        dpi: Dots per inch of a PNG.

    Raises:
        RequestError: Another suffix.
        StoreError: The file cannot be written; what was there before is still there.
    """
    target = user_path(path)
    if target.suffix.lower() not in _FORMATS:
        raise RequestError(
            f"{target.name!r} says no picture format", expected=f"a name ending in {', '.join(_FORMATS)}"
        )
    with mpl.rc_context(STYLE), _without_warnings():
        figure = draw()
        unfinished = target.with_name(f".{target.stem}.unfinished{target.suffix}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(unfinished, dpi=dpi, metadata={"Title": title})
            unfinished.replace(target)
        except OSError as error:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise StoreError(
                f"{target} cannot be written: {error.strerror}", next_step="choose another path"
            ) from error
    return target


def show_figure(draw: Callable[..., Figure]) -> None:
    """Open a window with a figure and wait until it is closed.

    Args:
        draw: Draws into the `figure` it is given.

    Raises:
        RequestError: There is no display.
    """
    import matplotlib.pyplot as plt

    if mpl.get_backend().lower() in {"agg", "pdf", "ps", "svg", "cairo", "template"}:
        raise RequestError("there is no display to open a window on", next_step=Remedy.SAVE_FIGURE)
    with mpl.rc_context(STYLE):
        draw(figure=plt.figure(figsize=(7.2, 4.8), layout="constrained"))
        plt.show()


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Signs that the font lacks are drawn as boxes; saying so for each of them helps nobody."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def head(figure: Figure, title: str, subtitle: str) -> None:
    """Write what is shown above a figure, as it is spelt."""
    figure.suptitle(f"{title}\n{subtitle}", x=0.01, ha="left", fontsize=9, parse_math=False)


def label_layers(axes: Axes, title: str, axis: str = "layer") -> None:
    """Title a panel whose x axis is the layer."""
    axes.set_title(title)
    axes.set_xlabel(axis)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def render_png(draw: Callable[[], Figure], *, dpi: int = 110) -> bytes:
    """Draw a figure as a PNG in memory.

    Args:
        draw: Makes the figure.
        dpi: Dots per inch.
    """
    out = io.BytesIO()
    with mpl.rc_context(STYLE), _without_warnings():
        draw().savefig(out, format="png", dpi=dpi)
    return out.getvalue()
