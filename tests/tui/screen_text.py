"""What a screen shows, as text: read from the picture that Textual makes of it."""

import html
import re
from collections.abc import Callable

from textual.app import App
from textual.pilot import Pilot

_TEXT = re.compile(r'<text [^>]*x="([\d.]+)"[^>]*clip-path="url\(#[^)]*-line-(\d+)\)"[^>]*>([^<]*)</text>')
_WIDTH = 12.2  # of a character in the picture
_MOST_WAITS = 400


def screen_text(app: App[None]) -> str:
    """The lines of the screen, without the blanks at their ends."""
    lines = [[" "] * app.size.width for _ in range(app.size.height)]
    for left, line, escaped in _TEXT.findall(app.export_screenshot()):
        text = html.unescape(escaped).replace("\N{NO-BREAK SPACE}", " ")
        start = round(float(left) / _WIDTH)
        lines[int(line)][start : start + len(text)] = text
    return "\n".join("".join(line).rstrip() for line in lines) + "\n"


async def wait_for(pilot: Pilot[None], *wanted: str) -> str:
    """Wait until the screen shows all of these; what it shows then."""
    return await wait_until(pilot, lambda text: all(part in text for part in wanted), str(wanted))


async def wait_until(pilot: Pilot[None], ready: Callable[[str], bool], what: str) -> str:
    """Wait until the text of the screen is as wanted; that text."""
    for _ in range(_MOST_WAITS):
        await pilot.pause(0.05)
        text = screen_text(pilot.app)
        if ready(text):
            return text
    raise AssertionError(f"never came: {what}\n{text}")
