"""Steered texts with their tokens colored by projection, and a cursor on one token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.color import Color
from textual.containers import VerticalScroll
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from engine.plots.steering_text import name_text
from engine.plots.tokens_text import MOST_SPREADS, one_line, stand_out
from engine.plots.visible_text import visible_text
from engine.records.steering import SteeredText, SteeredTexts
from tui.looks import looks_of, shade

_LEVELS = 4  # shades per class
_SIGNED = 2  # level from which a token has a sign if there are no colors
_SIGNS = {-1: "⁻", 0: "", 1: "⁺"}


@dataclass(frozen=True)
class Pane:
    """A text and its place among the others.

    Attributes:
        title: What was done.
        text: The text.
        scores: Robust z-score of each token, among the tokens of all the texts.
    """

    title: str
    text: SteeredText
    scores: list[float]


class TextPane(Widget):
    """One text below its measurements."""

    pane: reactive[Pane | None] = reactive(None, layout=True)
    cursor: reactive[int | None] = reactive(None)

    def render(self) -> Text:
        """Draw the measurements and the colored text."""
        if self.pane is None:
            return Text()
        shown, text = Text(), self.pane.text
        shift = "" if text["kind"] == "baseline" else f"  shift {text['shift']:+.2f}"
        shown.append(self.pane.title, "bold")
        shown.append("\n" if self.screen.has_class("-wide") else "  ")
        if "problem" in text:
            return visible_text(shown.append(text["problem"], looks_of(self.app).quiet))
        shown.append(f"perplexity {text['perplexity']:.2f}{shift}\n", looks_of(self.app).quiet)
        for place, (token, score) in enumerate(zip(text.get("token_texts", []), self.pane.scores, strict=True)):
            level = max(-_LEVELS, min(_LEVELS, round(score / MOST_SPREADS * _LEVELS)))
            style = Style(reverse=True, bold=True) if place == self.cursor else self._style(level)
            shown.append(one_line(token) + self._sign(level), style)
        return visible_text(shown.append("" if text["ended"] else " …"))

    def _style(self, level: int) -> Style:
        if level == 0 or self.app.no_color:
            return Style()
        ground = shade(self.app, self.background_colors[1], level / _LEVELS)
        ink = Color.parse(ground.get_truecolor().hex).get_contrast_text(1.0)
        return Style(color=ink.rich_color, bgcolor=ground)

    def _sign(self, level: int) -> str:
        if not self.app.no_color or abs(level) < _SIGNED:
            return ""
        return _SIGNS[(level > 0) - (level < 0)]


class TextPanes(VerticalScroll, can_focus=True, inherit_bindings=False):
    """The baseline, the steered text and the control, next to each other if there is room."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right,l", "move(1)", "Next token", show=False),
        Binding("left,h", "move(-1)", "Previous token", show=False),
        Binding("down,j", "switch(1)", "Next text", show=False),
        Binding("up,k", "switch(-1)", "Previous text", show=False),
        Binding("home,g", "move(-1000000000)", "First token", show=False),
        Binding("end,G", "move(1000000000)", "Last token", show=False),
    ]

    result: reactive[SteeredTexts | None] = reactive(None, always_update=True)
    chosen: reactive[int] = reactive(1)
    token: reactive[int] = reactive(0)

    @dataclass
    class Moved(Message):
        """The cursor moved, or the texts are new."""

    def compose(self) -> ComposeResult:
        """Yield a pane for each text."""
        for _ in range(3):
            yield TextPane()

    @property
    def texts(self) -> list[SteeredText]:
        """The baseline, the steered text and, if there is one, the control."""
        if self.result is None:
            return []
        return [self.result["baseline"], *self.result["steered"][:1], *self.result["controls"][:1]]

    @property
    def selected(self) -> SteeredText | None:
        """The text under the cursor."""
        return self.texts[self.chosen] if self.texts else None

    @property
    def panes(self) -> list[TextPane]:
        """The widgets of the texts."""
        return [*self.query(TextPane)]

    def watch_result(self, result: SteeredTexts | None) -> None:
        """Show new texts; the cursor stays where it is if that token exists."""
        texts = self.texts
        values = [value for text in texts for value in text.get("projections", [])]
        pooled = stand_out(values, ()) if values else []
        for number, pane in enumerate(self.panes):
            pane.display = number < len(texts)
            if result is not None and pane.display:
                text, count = texts[number], len(texts[number].get("projections", []))
                pane.pane = Pane(name_text(text, result), text, pooled[:count])
                pooled = pooled[count:]
        self.chosen, self.token = self.chosen, self.token  # clamp both
        self._follow()

    def validate_chosen(self, chosen: int) -> int:
        """Clamp the cursor to the existing texts."""
        return max(min(chosen, len(self.texts) - 1), 0) if self.texts else chosen

    def validate_token(self, token: int) -> int:
        """Clamp the cursor to the existing tokens."""
        return max(min(token, self.selected["tokens"] - 1), 0) if self.selected else token

    def watch_chosen(self) -> None:
        """Scroll to the cursor."""
        self.token = self.token  # the other text may be shorter
        self._follow()

    def watch_token(self) -> None:
        """Draw the cursor."""
        self._follow()

    def action_move(self, tokens: int) -> None:
        """Move the cursor in its text."""
        self.token += tokens

    def action_switch(self, texts: int) -> None:
        """Move the cursor to another text."""
        self.chosen += texts

    def on_click(self, event: events.Click) -> None:
        """Move the cursor to the clicked text."""
        if isinstance(event.widget, TextPane):
            self.chosen = self.panes.index(event.widget)

    def _follow(self) -> None:
        for number, pane in enumerate(self.panes):
            pane.cursor = self.token if number == self.chosen else None
            if number == self.chosen:
                self.scroll_to_widget(pane, animate=False)
        if self.is_mounted:
            self.post_message(self.Moved())
