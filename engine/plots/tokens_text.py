"""Standardize token projections for heat maps and render a reading as text."""

from collections.abc import Sequence
from statistics import median

from rich.console import Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from engine.records.files import TokenReading

_NORMAL = 1.4826  # the standard deviation of a normal distribution over its median absolute deviation
MOST_SPREADS = 3.0
"""Absolute z-score at which the color scale of a heat map ends."""


def stand_out(values: Sequence[float]) -> list[float]:
    """Compute the robust z-score of each token's projection within a layer.

    The z-score is the distance from the median, divided by the median absolute deviation scaled to the standard
    deviation of a normal distribution. The first token is excluded from both: it is an outlier in many models. Raw
    projections would show one color per layer: in early layers the class means hardly differ, and in most layers all
    tokens of running text project to one side of the positions that the direction was extracted from.

    Args:
        values: Projection of each token, `(tokens,)`.

    Returns:
        One z-score per token; all 0 if the tokens have no spread.
    """
    others = values[1:] or values
    middle = median(others)
    spread = _NORMAL * median(abs(value - middle) for value in others)
    return [(value - middle) / spread if spread > 0 else 0.0 for value in values]


_BAR = 31
_LOWEST, _HIGHEST = -1.0, 2.0  # range of the scale; arrows mark values outside it
# Blue to gray to orange is safe for color-blind readers; each background has a text color with enough contrast.
_SHADES = (
    ("#0072B2", "#ffffff"),
    ("#6cb4dc", "#000000"),
    ("#e8e8e8", "#000000"),
    ("#f2c46d", "#000000"),
    ("#E69F00", "#000000"),
)


def tokens_as_text(reading: TokenReading, *, layer: int | None = None, most: int = 60) -> RenderableType:
    """Render the text colored by projection, then one line per token with its value.

    Args:
        reading: Reading from `read_text`.
        layer: Layer to show; the leading one by default.
        most: Maximum number of tokens to list.

    Returns:
        A rich renderable.
    """
    shown = reading["leading"] if layer is None else layer
    values = reading["values"][shown]
    parts: list[RenderableType] = [
        Text(f"{reading['concept'] or 'custom pairs'}, layer {shown}, {reading['method']}", style="bold"),
        Text("0: mean of the negative class, 1: mean of the positive class", style="dim"),
        _colored(reading["tokens"], values),
        _listed(reading["tokens"][:most], values[:most]),
    ]
    if len(values) > most:
        parts.append(Text(f"and {len(values) - most} more tokens (--json lists all)", style="dim"))
    parts += [Text(f"warning: {warning}", style="yellow") for warning in reading["warnings"]]
    return Group(*parts)


def readable_token(token: str) -> str:
    """Replace the vocabulary's space and newline markers with readable characters.

    Non-printable characters become `�`.

    Example:
        >>> readable_token("Ġtrue"), readable_token("Ċ")
        (' true', '⏎')
    """
    text = token.replace("Ġ", " ").replace("▁", " ").replace("Ċ", "⏎").replace("\n", "⏎")
    # Keep escape codes in a token from reaching the terminal.
    return "".join(sign if sign.isprintable() else "�" for sign in text)


def describe_token(reading: TokenReading, token: int, layer: int) -> str:
    """Describe the projection and the z-score of one token at one layer.

    Args:
        reading: Reading from `read_text`.
        token: Index of the token, from 0.
        layer: One of the layers that were read.
    """
    value = reading["values"][layer][token]
    z_score = round(stand_out(reading["values"][layer])[token], 1) + 0.0  # avoids "-0.0"
    first = "; the first token is an outlier in many models, ignore it" if token == 0 else ""
    return (
        f"token {token} {readable_token(reading['tokens'][token])!r} at layer {layer}: {value:+.2f}"
        f" (0: negative class mean, 1: positive class mean), robust z-score {z_score:+.1f} within the layer{first}"
    )


def _colored(tokens: list[str], values: list[float]) -> Text:
    text = Text()
    for token, value in zip(tokens, values, strict=True):
        text.append(readable_token(token), style=_style(value))
    return text


def _listed(tokens: list[str], values: list[float]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("token", overflow="fold")
    table.add_column("value", justify="right")
    table.add_column(_axis(), width=_BAR, no_wrap=True)
    for token, value in zip(tokens, values, strict=True):
        table.add_row(Text(readable_token(token)), f"{value:.2f}", Text(_bar(value), style="bold"))
    return table


def _style(value: float) -> Style:
    place = (max(_LOWEST, min(_HIGHEST, value)) - _LOWEST) / (_HIGHEST - _LOWEST)
    background, ink = _SHADES[min(int(place * len(_SHADES)), len(_SHADES) - 1)]
    return Style(color=ink, bgcolor=background)


def _bar(value: float) -> str:
    cells = list(" " * _BAR)
    for end in (0.0, 1.0):
        cells[_column(end)] = "│"
    cells[_column(value)] = "◀" if value < _LOWEST else "▶" if value > _HIGHEST else "●"
    return "".join(cells)


def _axis() -> str:
    cells = list(" " * _BAR)
    cells[_column(0.0)], cells[_column(1.0)] = "0", "1"
    return "".join(cells)


def _column(value: float) -> int:
    clipped = max(_LOWEST, min(_HIGHEST, value))
    return round((clipped - _LOWEST) / (_HIGHEST - _LOWEST) * (_BAR - 1))
