"""Themes and chart colors: blue and orange, safe for color-blind readers."""

from __future__ import annotations

from rich.color import Color
from rich.style import Style
from textual.app import App
from textual.color import Color as ScreenColor
from textual.theme import Theme

from engine.plots.layers_chart import Looks

DARK = Theme(
    name="layerscope-dark",
    primary="#56B4E9",
    secondary="#6f8fa8",
    warning="#E69F00",
    error="#ff6b5e",
    success="#2fb58a",
    accent="#E69F00",
    foreground="#e4e4e4",
    background="#121417",
    surface="#1a1d21",
    panel="#242930",
    dark=True,
    variables={
        "tied": "#f0ad1f",
        "behind": "#6cb4dc",
        "quiet": "#8b949e",
        "cursor-column": "#2b4a5e",
        "footer-key-foreground": "#f0ad1f",
    },
)
LIGHT = Theme(
    name="layerscope-light",
    primary="#0072B2",
    secondary="#5b7f99",
    warning="#8a5a00",
    error="#b3261e",
    success="#00694d",
    accent="#9a5b00",
    foreground="#1c1c1c",
    background="#fbfbf8",
    surface="#f3f3ee",
    panel="#e4e4dc",
    dark=False,
    variables={
        "tied": "#a05f00",
        "behind": "#0063a0",
        "quiet": "#636a70",
        "cursor-column": "#c4dcea",
        "footer-key-foreground": "#9a5b00",
    },
)
THEMES = (DARK, LIGHT)
COLOURS = DARK.variables
"""Chart colors for themes that define none, such as Textual's."""


def looks_of(app: App[object]) -> Looks:
    """Return the chart colors of the current theme."""
    variables = app.theme_variables
    quiet = Style(color=variables["quiet"])
    return Looks(
        tied=Style(color=variables["tied"]),
        behind=Style(color=variables["behind"]),
        shuffled=quiet,
        quiet=quiet,
        cursor=Style(reverse=True) if app.no_color else Style(bgcolor=variables["cursor-column"], bold=True),
    )


def overlay_styles(app: App[object]) -> list[Style]:
    """Return one color per overlaid capture."""
    variables = app.theme_variables
    names = ("tied", "behind", "success", "error")
    return [Style(color=variables[name]) for name in names]


def shade(app: App[object], ground: ScreenColor, share: float) -> Color:
    """Return the color of a value on a scale between the classes.

    Args:
        app: The app, whose theme has the colors of the classes.
        ground: Color of the value 0.
        share: The value, from -1 (negative class) to 1 (positive class).
    """
    low = Color.parse(ground.hex6).get_truecolor()
    high = Color.parse(app.theme_variables["tied" if share > 0 else "behind"]).get_truecolor()
    mixed = [round(one + (other - one) * abs(share)) for one, other in zip(low, high, strict=True)]
    return Color.from_rgb(*mixed)
