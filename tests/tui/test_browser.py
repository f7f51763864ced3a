"""`layerscope tui --serve`: the app in a real browser, and the pages that may not use it."""

import asyncio
import base64
import http.client
import re
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import matplotlib.image
import psutil
import pytest

from tests.server.conftest import free_port

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def served(store: Path) -> Iterator[tuple[int, int]]:
    """Serve the store; yield the port and the process."""
    port = free_port()
    command = [sys.executable, "-m", "engine", "tui", str(store), "--serve", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            for _ in range(300):
                try:
                    ask(port)
                    break
                except OSError:
                    time.sleep(0.1)
            yield port, process.pid
        finally:
            process.terminate()
            process.communicate(timeout=30)


def ask(port: int, path: str = "/", **headers: str) -> tuple[int, str, http.client.HTTPMessage]:
    """Send a request; return the status, the text and the headers of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), answer.headers
    finally:
        connection.close()


def test_only_its_own_page_reaches_the_app(served: tuple[int, int]) -> None:
    port, process = served
    assert {connection.laddr.ip for connection in psutil.Process(process).net_connections()} == {"127.0.0.1"}
    status, page, headers = ask(port)
    assert status == 200
    assert "layerscope" in page
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    status, _, headers = ask(port, "/?fontsize=20", Host=f"localhost:{port}")
    assert (status, headers["Location"]) == (302, f"http://127.0.0.1:{port}/?fontsize=20")
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
    }
    for path in ("/", "/ws", "/download/x"):
        for foreign in ({"Origin": "http://example.com"}, {"Origin": "null"}, {"Host": f"example.com:{port}"}):
            status, text, _ = ask(port, path, **upgrade, **foreign)
            assert status == 403, (path, foreign)
            assert f"http://127.0.0.1:{port}" in text
    assert psutil.Process(process).children() == []  # no app was started for them


class Page:
    """A page of Chromium, driven through its DevTools protocol."""

    def __init__(self, connection: aiohttp.ClientWebSocketResponse) -> None:
        self._connection = connection
        self._sent = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self.received = ""

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method and return its result."""
        self._sent += 1
        call = self._sent
        await self._connection.send_json({"id": call, "method": method, "params": parameters})
        while call not in self._answers:
            await self._read()
        return self._answers.pop(call)

    async def press(self, key: str, code: int) -> None:
        """Press a key."""
        text = {"text": "\r" if key == "Enter" else key} if key == "Enter" or len(key) == 1 else {}
        for kind in ("keyDown", "keyUp"):
            more = text if kind == "keyDown" else {}
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **more)

    async def wait_for(self, *wanted: str) -> None:
        """Wait until the app has drawn all the texts since the last wait."""
        async with asyncio.timeout(120):
            while not all(text in self.received for text in wanted):
                await self._read()
        self.received = ""

    async def _read(self) -> None:
        message = await self._connection.receive_json(timeout=120)
        if "id" in message:
            self._answers[message["id"]] = message.get("result", message)
        elif message["method"] == "Network.webSocketFrameReceived":
            frame = message["params"]["response"]
            data = base64.b64decode(frame["payloadData"]).decode() if frame["opcode"] == 2 else ""
            self.received += SEQUENCE.sub("", data)


@asynccontextmanager
async def chromium(folder: Path) -> AsyncIterator[Page]:
    """Open an empty page of 1200 by 700 pixels."""
    assert CHROMIUM is not None
    options = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=1200,700"]
    command = [CHROMIUM, *options, "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            async with aiohttp.ClientSession() as session:
                address = await _page_address(session, folder / "DevToolsActivePort")
                async with session.ws_connect(address, max_msg_size=0) as connection:
                    yield Page(connection)
        finally:
            process.terminate()


async def _page_address(session: aiohttp.ClientSession, port_file: Path) -> str:
    """Wait for the browser's first page."""
    async with asyncio.timeout(120):
        while True:
            if port_file.is_file() and (port := port_file.read_text().partition("\n")[0]):
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    pages = [target for target in await answer.json() if target["type"] == "page"]
                if pages:
                    return str(pages[0]["webSocketDebuggerUrl"])
            await asyncio.sleep(0.1)


@pytest.mark.slow
@pytest.mark.anyio
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
async def test_the_app_in_a_browser(served: tuple[int, int], tmp_path: Path) -> None:
    async with chromium(tmp_path / "profile") as page:
        await page.call("Network.enable")
        await page.call("Emulation.setFocusEmulationEnabled", enabled=True)
        await page.call("Page.navigate", url=f"http://127.0.0.1:{served[0]}/")
        await page.wait_for("4 captures", "small_warmth", "layer 16,")
        await page.press("Enter", 13)
        await page.wait_for("Held-out projections at layer 16")
        shot = tmp_path / "ranking.png"
        shot.write_bytes(base64.b64decode((await page.call("Page.captureScreenshot"))["data"]))
        await page.press("Escape", 27)
        await page.wait_for("small_warmth", "Filter")
        await page.press("q", 81)
        answer = await page.call("Runtime.evaluate", expression="document.title")
        assert answer["result"]["type"] == "string"
    colors = {tuple(pixel) for row in matplotlib.image.imread(shot)[::4, ::4, :3] for pixel in row}
    assert len(colors) > 20  # text and charts, not an empty page
