"""HTTP: who may call, by which name, from which page, and with which token."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from engine.errors import RequestError
from server.app import LayerscopeServer
from server.http import Address, build_http, parse_address, read_token
from tests.program import Program
from tests.server.conftest import child_environment, running_http

TOKEN = "0123456789abcdef-of-tests"  # noqa: S105 - of no server but these

HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "0"},
    },
}
ACCEPT = {"Accept": "application/json, text/event-stream"}


@pytest.fixture(scope="module")
def open_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_http(tmp_path_factory.mktemp("open") / "store") as (url, _):
        yield url


@pytest.fixture(scope="module")
def closed_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_http(tmp_path_factory.mktemp("closed") / "store", LAYERSCOPE_TOKEN=TOKEN) as (url, _):
        yield url


def post(url: str, **headers: str) -> httpx2.Response:
    return httpx2.post(url, json=HELLO, headers=ACCEPT | headers)


def test_a_plain_client_on_this_machine_is_served(open_url: str) -> None:
    answer = post(open_url)
    assert answer.status_code == 200
    assert "layerscope" in answer.text


def test_a_lone_surrogate_is_answered_with_an_error(open_url: str) -> None:
    body = json.dumps(HELLO).replace('"test"', '"\\ud83d"')
    answer = httpx2.post(open_url, content=body, headers=ACCEPT | {"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == -32700


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1:1", ""])
def test_another_host_is_refused(open_url: str, host: str) -> None:
    assert post(open_url, Host=host).status_code == 421


@pytest.mark.parametrize("origin", ["http://evil.example", "https://127.0.0.1", "null"])
def test_a_page_from_elsewhere_is_forbidden(open_url: str, origin: str) -> None:
    assert post(open_url, Origin=origin).status_code == 403


def test_a_page_of_this_server_is_served(open_url: str) -> None:
    assert post(open_url, Origin=open_url.removesuffix("/mcp")).status_code == 200


@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x"])
def test_without_the_token_nothing_is_answered(closed_url: str, given: str | None) -> None:
    answer = post(closed_url, **({} if given is None else {"Authorization": given}))
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert TOKEN not in answer.text
    assert httpx2.get(closed_url).status_code == 401


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_with_the_token_it_is_served(closed_url: str, scheme: str) -> None:
    assert post(closed_url, Authorization=f"{scheme} {TOKEN}").status_code == 200


def test_the_token_does_not_open_other_hosts(closed_url: str) -> None:
    assert post(closed_url, Authorization=f"Bearer {TOKEN}", Host="evil.example").status_code == 421


@pytest.mark.parametrize(
    ("options", "environment", "said"),
    [
        (["--http", "0.0.0.0:0"], {}, "HOST:PORT"),
        (["--http", "0.0.0.0:8799"], {}, "LAYERSCOPE_TOKEN"),
        (["--http", "127.0.0.1:8799"], {"LAYERSCOPE_TOKEN": "short"}, "at least 16"),
        (["--http", "192.0.2.1:8799"], {"LAYERSCOPE_TOKEN": TOKEN}, "nothing can listen at 192.0.2.1:8799"),
        (["--http", "no.such.host:8799"], {"LAYERSCOPE_TOKEN": TOKEN}, "nothing can listen at no.such.host:8799"),
    ],
)
def test_unsafe_settings_do_not_start(
    tmp_path: Path, options: list[str], environment: dict[str, str], said: str
) -> None:
    result = Program(tmp_path)("serve", "--store", str(tmp_path), *options, **environment)
    assert (result.returncode, result.stdout) == (2, "")
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_taken_port_is_an_error_without_an_announcement(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = Program(tmp_path)("serve", "--store", str(tmp_path), "--http", address)
    assert (result.returncode, result.stdout) == (2, "")
    assert f"nothing can listen at {address}: Address already in use" in result.stderr
    assert "listening" not in result.stderr
    assert "Traceback" not in result.stderr


def test_beyond_loopback_a_token_is_needed(app: LayerscopeServer) -> None:
    for host in ("0.0.0.0", "192.0.2.1", "box.example", "[::]"):  # noqa: S104 - refused
        with pytest.raises(RequestError, match="token"):
            build_http(app, Address(host, 8765), None, [], [])


def test_beyond_loopback_with_a_token_it_can_be_built(app: LayerscopeServer) -> None:
    build_http(app, Address("0.0.0.0", 8765), TOKEN, ["box.example:8765"], ["https://page.example"])  # noqa: S104


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "[::1]"])
def test_loopback_addresses_are_recognized(host: str) -> None:
    assert parse_address(f"{host}:8765") == Address(host, 8765)
    assert Address(host, 8765).loopback


@pytest.mark.parametrize("text", ["", "8765", ":8765", "host:", "host:0", "host:65536", "host:x", "host:-1"])
def test_invalid_addresses(text: str) -> None:
    with pytest.raises(RequestError, match="HOST:PORT"):
        parse_address(text)


def test_the_token_comes_from_a_file_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAYERSCOPE_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("LAYERSCOPE_TOKEN", TOKEN)
    assert read_token(None) == TOKEN
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}-of-a-file\n")
    assert read_token(file) == f"{TOKEN}-of-a-file"


@pytest.mark.parametrize(
    "content",
    [b"", b"short", b"\xff" * 32, "é".encode() * 32, b"two words of a token", b"0123456789abcdef\n0123456789"],
)
def test_token_files_without_a_token(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(RequestError):
        read_token(file)
    with pytest.raises(RequestError):
        read_token(tmp_path / "nothing")


def test_tests_ignore_the_token_of_their_environment() -> None:
    assert "LAYERSCOPE_TOKEN" not in child_environment()
