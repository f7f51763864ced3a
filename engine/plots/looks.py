"""The colours of what is drawn as text; the signs alone suffice where there are none. Knows rich."""

from dataclasses import dataclass

from rich.style import Style


@dataclass(frozen=True)
class Looks:
    """Colours by what they stand for.

    Attributes:
        tied: A layer that may be the best; the positive side.
        behind: A layer that is behind it; the negative side.
        shuffled: What shuffled labels score.
        quiet: Axes and labels.
        cursor: What is looked at.
    """

    tied: Style
    behind: Style
    shuffled: Style
    quiet: Style
    cursor: Style


PLAIN = Looks(
    tied=Style(color="yellow"),
    behind=Style(color="blue"),
    shuffled=Style(dim=True),
    quiet=Style(dim=True),
    cursor=Style(reverse=True),
)
