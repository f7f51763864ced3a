"""Style, save and show figures, readable in print and by color-blind readers."""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from engine.errors import RequestError, StoreError
from engine.inputs import user_path
from engine.records.files import FIGURE_FORMATS
from engine.remedies import Remedy
from engine.store.unfinished import write_whole

# Palette of Okabe and Ito: distinct for color-blind readers, and by lightness in grayscale.
BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#E69F00", "#009E73", "#8c8c8c", "#222222"
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


def save_figure(draw: Callable[[], Figure], path: str | Path, *, title: str = "", dpi: int = 200) -> Path:
    """Draw a figure and save it atomically; the suffix sets the format.

    Args:
        draw: Returns the figure.
        path: File to write, ending in `.png`, `.svg` or `.pdf`. Missing parent folders are created.
        title: Title stored in the metadata of the file, so that it survives a rename.
        dpi: Resolution of a PNG, in dots per inch.

    Returns:
        Path of the file.

    Raises:
        RequestError: The suffix is not supported.
        StoreError: The file cannot be written. An existing file stays unchanged.
    """
    target = require_format(path)
    with mpl.rc_context(STYLE), _without_warnings():
        figure = draw()
        save = partial(figure.savefig, format=target.suffix.lower()[1:], dpi=dpi, metadata={"Title": title})
        try:
            write_whole(target, save)
        except OSError as error:
            raise StoreError(
                f"{target} cannot be written: {error.strerror}", next_step="choose another path"
            ) from error
    return target


def require_format(path: str | Path) -> Path:
    """Refuse a file whose suffix is not that of an image, before anything is computed.

    Args:
        path: See `save_figure`.

    Raises:
        RequestError: The suffix is not supported.
    """
    target = user_path(path)
    if target.suffix.lower() not in FIGURE_FORMATS:
        raise RequestError(
            f"{target.name!r} has no supported image format", expected=f"a name ending in {', '.join(FIGURE_FORMATS)}"
        )
    return target


def show_figure(draw: Callable[..., Figure]) -> None:
    """Show a figure in a window and wait until the window is closed.

    Args:
        draw: Draws into the figure passed as `figure`.

    Raises:
        RequestError: No display is available.
    """
    import matplotlib.pyplot as plt

    if mpl.get_backend().lower() in {"agg", "pdf", "ps", "svg", "cairo", "template"}:
        raise RequestError("there is no display to open a window on", next_step=Remedy.SAVE_FIGURE)
    with mpl.rc_context(STYLE):
        draw(figure=plt.figure(figsize=(7.2, 4.8), layout="constrained"))
        plt.show()


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence matplotlib's warning for each glyph that it draws as a box."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def head(figure: Figure, title: str, subtitle: str) -> None:
    """Write the title and subtitle of a figure literally, without math markup."""
    figure.suptitle(f"{title}\n{subtitle}", x=0.01, ha="left", fontsize=9, parse_math=False)


def label_layers(axes: Axes, title: str, axis: str = "layer") -> None:
    """Set the title and the integer layer axis of a panel."""
    axes.set_title(title)
    axes.set_xlabel(axis)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def render_png(draw: Callable[[], Figure], *, dpi: int = 110) -> bytes:
    """Render a figure to PNG bytes.

    Args:
        draw: Returns the figure.
        dpi: Resolution in dots per inch.
    """
    out = io.BytesIO()
    with mpl.rc_context(STYLE), _without_warnings():
        draw().savefig(out, format="png", dpi=dpi)
    return out.getvalue()
