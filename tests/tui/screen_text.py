"""The text on a screen, read from Textual's SVG screenshot."""

import html
import re
from collections.abc import Callable

from textual.app import App
from textual.pilot import Pilot

_TEXT = re.compile(r'<text [^>]*x="([\d.]+)"[^>]*clip-path="url\(#[^)]*-line-(\d+)\)"[^>]*>([^<]*)</text>')
_WIDTH = 12.2  # of a character in the screenshot
_MOST_WAITS = 400


def screen_text(app: App[None]) -> str:
    """Return the screen's lines without trailing blanks."""
    lines = [[" "] * app.size.width for _ in range(app.size.height)]
    for left, line, escaped in _TEXT.findall(app.export_screenshot()):
        text = html.unescape(escaped).replace("\N{NO-BREAK SPACE}", " ")
        start = round(float(left) / _WIDTH)
        lines[int(line)][start : start + len(text)] = text
    return "\n".join("".join(line).rstrip() for line in lines) + "\n"


async def wait_for(pilot: Pilot[None], *wanted: str) -> str:
    """Wait until the screen shows all the texts, and return its text."""
    return await wait_until(pilot, lambda text: all(part in text for part in wanted), str(wanted))


async def wait_until(pilot: Pilot[None], ready: Callable[[str], bool], what: str) -> str:
    """Wait until the screen's text satisfies a condition, and return it."""
    for _ in range(_MOST_WAITS):
        await pilot.pause(0.05)
        text = screen_text(pilot.app)
        if ready(text):
            return text
    raise AssertionError(f"timed out waiting for {what}\n{text}")
