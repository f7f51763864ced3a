"""HTTP under strain: half-sent requests, unread answers, too many connections, no file descriptors left."""

import asyncio
import errno
import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx2
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from server.app import LayerscopeServer
from server.connections import HttpLimits, RareLog, survive_shortage
from server.http import Address, build_http, http_server, listening, serve_until
from tests.server.conftest import free_port, running, serve_command
from tests.server.test_http import ACCEPT, HELLO, post

HALF = b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Le"
HALF_BODY = b'POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 900\r\n\r\n{"jsonrpc":'


@contextmanager
def served(app: LayerscopeServer, limits: HttpLimits) -> Iterator[int]:
    """Serve in a thread of this process; the port."""
    address = Address("127.0.0.1", free_port())
    with in_a_thread(http_server(build_http(app, address, None, [], []), limits), address):
        yield address.port


@contextmanager
def in_a_thread(server: uvicorn.Server, address: Address) -> Iterator[None]:
    with listening(address) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(serve_until(server, listener)))
        thread.start()
        try:
            yield
        finally:
            server.should_exit = True
            thread.join(20)
    assert not thread.is_alive()


def connect(stack: ExitStack, port: int, sent: bytes = b"") -> socket.socket:
    connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
    connection.sendall(sent)
    return connection


def answered(port: int) -> bool:
    return post(f"http://127.0.0.1:{port}/mcp").status_code == 200


def closed(connection: socket.socket) -> bool:
    """Whether the server closes a connection, without having answered."""
    try:
        return connection.recv(100) == b""
    except ConnectionResetError:
        return True


def test_three_hundred_half_sent_requests_keep_nobody_waiting_and_are_closed(app: LayerscopeServer) -> None:
    with served(app, HttpLimits(header_s=1.0)) as port, ExitStack() as stack:
        assert answered(port)
        half = [connect(stack, port, HALF) for _ in range(300)]
        assert answered(port)
        assert all(closed(connection) for connection in half)
        assert answered(port)


@pytest.mark.parametrize("sent", [b"", HALF_BODY])
def test_a_request_that_does_not_arrive_is_closed_and_others_are_not(app: LayerscopeServer, sent: bytes) -> None:
    with served(app, HttpLimits(header_s=0.3, request_s=0.3)) as port, ExitStack() as stack:
        client = stack.enter_context(httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers=ACCEPT))
        assert client.post("/mcp", json=HELLO).status_code == 200
        assert closed(connect(stack, port, sent))
        time.sleep(0.5)  # the kept connection is older than the limit, and still good for a request
        assert client.post("/mcp", json=HELLO).status_code == 200


def test_a_body_has_its_own_time(app: LayerscopeServer) -> None:
    body = json.dumps(HELLO).encode()
    with served(app, HttpLimits(header_s=0.2)) as port, ExitStack() as stack:
        headers = {
            "Host": f"127.0.0.1:{port}",
            "Content-Type": "application/json",
            "Content-Length": len(body),
            **ACCEPT,
        }
        lines = ["POST /mcp HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        connection = connect(stack, port, "\r\n".join(lines).encode())
        time.sleep(0.5)
        connection.sendall(body)
        assert connection.recv(20).startswith(b"HTTP/1.1 200")


LARGE = 64_000_000  # more than the system buffers


async def large(scope: Scope, _receive: Receive, send: Send) -> None:
    """Answer with many bytes, at once or in parts."""
    if scope["type"] != "http":
        return
    parts = 1 if scope["path"] == "/whole" else 64
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for part in range(parts):
        await send({"type": "http.response.body", "body": bytes(LARGE // parts), "more_body": part < parts - 1})


@pytest.mark.parametrize("path", ["/whole", "/parts"])
@pytest.mark.parametrize("then", ["keep-alive", "close"])
def test_a_client_that_does_not_read_its_answer_is_closed(path: str, then: str) -> None:
    address = Address("127.0.0.1", free_port())
    server = http_server(large, HttpLimits(answer_s=2.0))
    asked = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: {then}\r\n\r\n".encode()
    with in_a_thread(server, address), ExitStack() as stack:
        wait_for(address.port)
        reading, silent = (connect(stack, address.port, asked) for _ in range(2))
        read = 0
        while part := reading.recv(2**20):
            read += len(part)
            if read >= LARGE and then == "keep-alive":
                break
        assert read >= LARGE
        reading.close()
        deadline = time.monotonic() + 20
        while server.server_state.connections:
            assert time.monotonic() < deadline, "the connection is held"
            time.sleep(0.05)
        silent.settimeout(20)
        read = 0
        with suppress(ConnectionResetError):
            while part := silent.recv(2**20):
                read += len(part)
        assert read < LARGE


def test_beyond_the_limit_a_connection_is_told_so(app: LayerscopeServer, caplog: pytest.LogCaptureFixture) -> None:
    """Connections whose request has arrived are never closed for a new one."""
    with served(app, HttpLimits(connections=3)) as port, ExitStack() as stack:
        clients = [stack.enter_context(httpx2.Client(base_url=f"http://127.0.0.1:{port}")) for _ in range(3)]
        for client in clients:  # kept open after the answer
            assert client.post("/mcp", json=HELLO, headers=ACCEPT).status_code == 200
        for _ in range(2):
            assert connect(stack, port).recv(100).startswith(b"HTTP/1.1 503")
        assert all(client.post("/mcp", json=HELLO, headers=ACCEPT).status_code == 200 for client in clients)
    events = [record.getMessage() for record in caplog.records]
    assert events.count("too many connections: new ones are refused") == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on open files of a process")
def test_few_file_descriptors_fill_no_log(tmp_path: Path) -> None:
    port = free_port()
    command = serve_command(tmp_path, "--http", f"127.0.0.1:{port}")
    errors = tmp_path / "errors"
    with running("sh", "-c", f'ulimit -n 40; exec "$@" 2> {errors}', "sh", *command), ExitStack() as stack:
        wait_for(port)
        for _ in range(300):
            connect(stack, port, HALF)
        assert answered(port)
        stack.close()
        assert answered(port)
    said = errors.read_text()
    assert len(said) < 5000, said[:5000]
    assert "Traceback" not in said


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_accepting_without_file_descriptors_is_logged_once_and_other_errors_each_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As asyncio reports them: `socket.accept() out of system resource`."""
    loop = asyncio.new_event_loop()
    survive_shortage(loop)
    for error in [OSError(errno.EMFILE, "Too many open files")] * 3 + [OSError(errno.EIO, "broken")] * 2:
        loop.call_exception_handler({"message": "socket.accept()", "exception": error})
    loop.close()
    events = [record.getMessage().splitlines()[0] for record in caplog.records]
    assert events == ["too many open files: new connections have to wait", "socket.accept()", "socket.accept()"]


def test_what_is_said_often_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="server"):
        rare = RareLog()
        for event in ["one", "one", "two", "one"]:
            rare.warn(event)
    assert [record.getMessage() for record in caplog.records] == ["one", "two"]
