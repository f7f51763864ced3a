"""A model that is not on this machine: what the hub answers, or that it does not, said in words.

The hub is a small server on this machine; the client is a fresh process, because the hub's address is read once.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

ANSWERS = {
    "there": (200, ""),
    "gone": (404, "RepoNotFound"),
    "gated": (403, "GatedRepo"),
    "moved": (404, "RevisionNotFound"),
}

ASK = """
import sys
from engine.errors import ModelError
from engine.models.hub import require_on_hub
from engine.records.models import ModelSource
for name in sys.argv[1:]:
    try:
        require_on_hub(ModelSource(name, f"owner/{name}", "hub", f"owner/{name}", "v1", local=False))
    except ModelError as error:
        print(error)
    else:
        print("can be had")
"""


class _Hub(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        name = self.path.split("/")[4]
        status, error = ANSWERS[name]
        body = b'{"id": "owner/there"}' if status == 200 else b"{}"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    """The address of a hub that gives `ANSWERS`."""
    with HTTPServer(("127.0.0.1", 0), _Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def environment(endpoint: str, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    return kept | {"HF_ENDPOINT": endpoint, "NO_PROXY": "127.0.0.1"} | more


def ask(names: Iterable[str], environment: dict[str, str]) -> list[str]:
    result = subprocess.run(
        [sys.executable, "-c", ASK, *names], env=environment, capture_output=True, text=True, check=True
    )
    return result.stdout.splitlines()


def test_what_the_hub_answers_is_said_in_words(hub: str) -> None:
    there, gone, gated, moved = ask(ANSWERS, environment(hub))
    assert there == "can be had"
    assert gone.startswith("the hub shows no model 'owner/gone'.")
    assert gated.startswith("the hub shows no model 'owner/gated'.")
    assert "licence you accepted while logged in" in gated
    assert moved.startswith("owner/moved has no revision 'v1'.")


NOBODY = "http://127.0.0.1:9"


@pytest.mark.slow
def test_a_hub_out_of_reach_is_said_and_what_to_do(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "engine", "capture", "--model", "owner/name", "--prompt", "Hello"],
        cwd=tmp_path,
        env=environment(NOBODY),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (3, "")
    assert "owner/name is not on this machine and the hub is out of reach" in result.stderr
    assert "or a model or folder that is already here" in result.stderr
    assert "Traceback" not in result.stderr


def test_working_offline_is_told_from_a_broken_connection() -> None:
    (said,) = ask(["name"], environment(NOBODY, HF_HUB_OFFLINE="1"))
    assert "owner/name is not on this machine" in said
    assert "Offline" in said
