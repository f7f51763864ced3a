"""How far each token of a text stands out within its layer. Knows numbers alone; the unit of every heat map."""

from collections.abc import Sequence
from statistics import median

from rich.console import Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from engine.records.files import TokenReading

_NORMAL = 1.4826  # the standard deviation of a normal distribution over its median absolute deviation
MOST_SPREADS = 3.0
"""Where the colours of a heat map end."""


def stand_out(values: Sequence[float]) -> list[float]:
    """How far each token lies from the median of a layer, in spreads of its tokens; the first token counts for neither.

    A spread is the median absolute deviation, scaled to the standard deviation of a normal distribution. Values in
    class gaps would show one colour a layer: early layers have hardly a gap, and in most layers all tokens of running
    text lie to one side of the tokens that the direction was read at.

    Args:
        values: One a token.
    """
    others = values[1:] or values
    middle = median(others)
    spread = _NORMAL * median(abs(value - middle) for value in others)
    return [(value - middle) / spread if spread > 0 else 0.0 for value in values]


_BAR = 31
_LOWEST, _HIGHEST = -1.0, 2.0  # what the scale shows; beyond it an arrow
# From blue through grey to orange, told apart by colour-blind readers; each with ink that can be read on it.
_SHADES = (
    ("#0072B2", "#ffffff"),
    ("#6cb4dc", "#000000"),
    ("#e8e8e8", "#000000"),
    ("#f2c46d", "#000000"),
    ("#E69F00", "#000000"),
)


def tokens_as_text(reading: TokenReading, *, layer: int | None = None, most: int = 60) -> RenderableType:
    """The text in colours, and its tokens one a line with their value.

    Args:
        reading: From `read_text`.
        layer: Which layer; the leading one unless given.
        most: Most tokens listed one a line.
    """
    shown = reading["leading"] if layer is None else layer
    values = reading["values"][shown]
    parts: list[RenderableType] = [
        Text(f"{reading['concept'] or 'pairs of your own'}, layer {shown}, {reading['method']}", style="bold"),
        Text("0: mean of the negative prompts, 1: mean of the positive prompts", style="dim"),
        _coloured(reading["tokens"], values),
        _listed(reading["tokens"][:most], values[:most]),
    ]
    if len(values) > most:
        parts.append(Text(f"and {len(values) - most} more tokens (all of them with --json)", style="dim"))
    parts += [Text(f"warning: {warning}", style="yellow") for warning in reading["warnings"]]
    return Group(*parts)


def readable_token(token: str) -> str:
    """A token as people write it: the vocabulary's signs for space and line break replaced.

    Example:
        >>> readable_token("Ġtrue"), readable_token("Ċ")
        (' true', '⏎')
    """
    text = token.replace("Ġ", " ").replace("▁", " ").replace("Ċ", "⏎").replace("\n", "⏎")
    return "".join(sign if sign.isprintable() else "�" for sign in text)  # no token may steer a terminal


def describe_token(reading: TokenReading, token: int, layer: int) -> str:
    """One token at one layer, in words.

    Args:
        reading: From `read_text`.
        token: Its number.
        layer: A layer that was read.
    """
    value = reading["values"][layer][token]
    spreads = stand_out(reading["values"][layer])[token]
    side = "positive" if spreads > 0 else "negative"
    stands = (
        f"{abs(spreads):.1f} spreads to the {side} side of this text's median"
        if abs(spreads) >= 0.05  # less is written as 0.0
        else "at this text's median"
    )
    first = "; the first token is extreme in many models and says nothing" if token == 0 else ""
    return (
        f"token {token} {readable_token(reading['tokens'][token])!r} at layer {layer}: {value:+.2f}"
        f" (0 negative mean, 1 positive mean), {stands}{first}"
    )


def _coloured(tokens: list[str], values: list[float]) -> Text:
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
