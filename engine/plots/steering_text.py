"""Render steered texts: a table of measurements, then the texts side by side."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from engine.records.steering import SteeredText, SteeredTexts

_NARROWEST = 24  # of a column of text
_UNITS = {
    "norm": "in units of the mean norm of the states",
    "gap": "in units of the distance between the class means",
    "raw": "in multiples of the unit vector",
}


class SteeredView:
    """Steered texts as text; the number of columns follows the width of the console.

    Args:
        result: Result of `steer_text`.
    """

    def __init__(self, result: SteeredTexts) -> None:
        self._result = result

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the parts of the view."""
        result = self._result
        yield Text(f"{result['concept'] or 'custom pairs'}, layer {result['layer']}, {result['method']}", style="bold")
        for note in _notes(result):
            yield Text(note, style="dim")
        yield Text()
        yield _measurements(result)
        for columns in _rows(result, max(2, options.max_width // _NARROWEST)):
            yield Text()
            yield _side_by_side(columns)
        for warning in result["warnings"]:
            yield Text(f"warning: {warning}", style="yellow")


def steered_as_text(result: SteeredTexts) -> Group:
    """Render the texts with their measurements, as wide as the console.

    Args:
        result: Result of `steer_text`.
    """
    return Group(SteeredView(result))


def sweep_as_text(results: Sequence[SteeredTexts]) -> Group:
    """Render a sweep over layers: shift and perplexity at each layer and strength, then those of random directions.

    Args:
        results: Results of `steer_text` for one prompt, at least one, with the same strengths.
    """
    some = results[0]
    parts: list[RenderableType] = [
        Text(f"{some['concept'] or 'custom pairs'}, {some['method']}", style="bold"),
        *(Text(note, style="dim") for note in _notes(some, several=True)),
        Text(f"in each cell: shift, then perplexity (baseline {some['baseline']['perplexity']:.2f})", style="dim"),
        Text(),
        _grid([(result["layer"], result["steered"]) for result in results], some),
    ]
    if some["controls"]:
        parts += [Text(), _grid([(result["layer"], result["controls"]) for result in results], some)]
    warnings = dict.fromkeys(warning for result in results for warning in result["warnings"])
    return Group(*parts, *(Text(f"warning: {warning}", style="yellow") for warning in warnings))


def _grid(rows: Sequence[tuple[int, list[SteeredText]]], result: SteeredTexts) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("layer", justify="right")
    for text in rows[0][1]:
        table.add_column(name_text(text, result), justify="right")
    for layer, texts in rows:
        table.add_row(str(layer), *map(_cell, texts))
    return table


def _cell(text: SteeredText) -> str:
    return "overflow" if "problem" in text else f"{text['shift']:+.2f} {text['perplexity']:6.2f}"


def _notes(result: SteeredTexts, *, several: bool = False) -> Iterator[str]:
    chosen = f"sampled with seed {result['seed']}" if result["sampled"] else "greedy"
    if any(text["kind"] == "ablated" for text in result["steered"]):
        yield f"the direction is projected out of all tokens; {chosen}"
    else:
        yield f"strength {_UNITS[result['unit']]}, added to {result['steered_tokens']} tokens; {chosen}"
    yield "perplexity, projection: of the new tokens, as the unsteered model reads them"
    if result["method"] == "imported":
        yield "projection 0: no projection, 1: length of the imported vector; shift: from the baseline"
    else:
        yield "projection 0: mean of the negative class, 1: mean of the positive class; shift: from the baseline"
    if "control_cosine" in result:
        cosine = "" if several else f" (cosine {result['control_cosine']:+.2f})"
        yield f"random: a random direction of the same length, drawn from the covariance of the captured states{cosine}"


def _measurements(result: SteeredTexts) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("text")
    for name in ("tokens", "perplexity", "projection", "shift"):
        table.add_column(name, justify="right")
    for text in (result["baseline"], *result["steered"], *result["controls"]):
        if "problem" in text:
            table.add_row(name_text(text, result), "overflow")
            continue
        shift = "" if text["kind"] == "baseline" else f"{text['shift']:+.2f}"
        numbers = (str(text["tokens"]), f"{text['perplexity']:.2f}", f"{text['projection']:.2f}", shift)
        table.add_row(name_text(text, result), *numbers)
    return table


def _rows(result: SteeredTexts, width: int) -> Iterator[list[tuple[str, SteeredText]]]:
    """Yield the columns of each row of texts: the baseline, then as many others as fit, each with its control."""
    others = [text for pair in zip_longest(result["steered"], result["controls"]) for text in pair if text is not None]
    for start in range(0, len(others), width - 1):
        shown = (result["baseline"], *others[start : start + width - 1])
        yield [(name_text(text, result), text) for text in shown]


def _side_by_side(columns: list[tuple[str, SteeredText]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", expand=True)
    for name, _ in columns:
        table.add_column(name, ratio=1, overflow="fold")
    table.add_row(*(_said(text) for _, text in columns))
    return table


def _said(text: SteeredText) -> Text:
    if "problem" in text:
        return Text(text["problem"], style="dim italic")
    return Text(text["text"] + ("" if text["ended"] else " …"))


def name_text(text: SteeredText, result: SteeredTexts) -> str:
    """Name a text by what was done, and how much of it.

    Args:
        text: One of the texts.
        result: Result of `steer_text` that has it.
    """
    if text["kind"] == "baseline":
        return "baseline"
    if text["strength"] is None:
        return "ablated" if text["kind"] == "ablated" else "random ablated"
    what = result["concept"] or "steered"
    return f"{'random' if text['kind'] == 'control' else what} {text['strength']:+g}"
