"""`layerscope serve` as a process: imports, output, log and exit."""

import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from server.command import JsonLines
from tests.program import Program
from tests.server.conftest import (
    allow,
    child_environment,
    contents,
    many_pairs,
    running,
    running_http,
    serve_command,
)

HEAVY = re.compile(r"^import time:.*\| +(torch|transformers|matplotlib)$", re.MULTILINE)
HELLO = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "test", "version": "0"},
}


class Talk:
    """JSON-RPC over a server's pipes; every line that it sends must be protocol."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self._number = 0

    def hello(self) -> dict[str, Any]:
        answer = self.ask("initialize", HELLO)
        self.tell("notifications/initialized")
        return answer

    def ask(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        self.send(method, params)
        while True:
            message = self.read()
            if message.get("id") == self._number:
                return message

    def send(self, method: str, params: dict[str, Any] | None = None) -> None:
        self._number += 1
        self.write(json.dumps({"jsonrpc": "2.0", "id": self._number, "method": method, "params": params or {}}))

    def tell(self, method: str) -> None:
        self.write(json.dumps({"jsonrpc": "2.0", "method": method}))

    def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        answer = self.ask("tools/call", {"name": tool, "arguments": arguments})
        structure: dict[str, Any] = answer["result"]["structuredContent"]
        return structure

    def write(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()
        message: dict[str, Any] = json.loads(line)
        assert message["jsonrpc"] == "2.0"
        return message

    def until_busy(self) -> None:
        """Start a capture that takes seconds; return once prompts are running."""
        self.hello()
        asked = {"pairs": many_pairs(400), "model": "slow", "positions": "last", "name": "long", "wait_s": 0}
        job = self.call("capture_contrast", **asked)
        while job["done"] == 0:
            assert job["status"] in {"waiting", "running"}, job
            job = self.call("wait_for_job", job=job["job"], wait_s=0.1)


def ended(process: "subprocess.Popen[str]", within: float) -> tuple[int, float]:
    """Wait for the end; return the exit code and the seconds it took."""
    begun = time.perf_counter()
    code = process.wait(timeout=within)
    return code, time.perf_counter() - begun


def test_ready_without_torch_and_nothing_but_protocol_on_stdout(tmp_path: Path) -> None:
    command, written = serve_command(tmp_path / "store"), tmp_path / "imports"
    with written.open("w") as errors, running(command[0], "-X", "importtime", *command[1:], errors=errors) as process:
        talk = Talk(process)
        said = talk.hello()["result"]
        assert said["serverInfo"]["name"] == "layerscope"
        assert said["capabilities"]["resources"]["listChanged"] is True  # as test_app.py does
        assert said["capabilities"]["tools"]["listChanged"] is False
        assert len(talk.ask("tools/list")["result"]["tools"]) == 19
        assert talk.call("list_concepts")["concepts"]
        assert talk.call("list_models")["models"]
        assert talk.call("list_captures")["total"] == 0
        out, _ = process.communicate(timeout=10)
    err = written.read_text()
    assert (out, process.returncode) == ("", 0)
    assert re.findall(r"\| +mcp\.server$", err, re.MULTILINE)
    assert not HEAVY.findall(err)
    assert not (tmp_path / "store").exists()  # reading wrote nothing


def test_answers_from_records_load_no_torch(store: Path, tmp_path: Path) -> None:
    command, written = serve_command(store), tmp_path / "imports"
    with written.open("w") as errors, running(command[0], "-X", "importtime", *command[1:], errors=errors) as process:
        talk = Talk(process)
        talk.hello()
        assert talk.call("list_captures")["total"] == 3
        assert talk.call("describe_capture", name="loudness")["findings"]
        first, second, *_ = talk.call("rank_layers", name="loudness")["layers"]
        layers = {"layer": first["layer"], "against": second["layer"]}
        assert talk.call("inspect_layer", name="loudness", **layers)["against"]
        process.communicate(timeout=10)
    assert not HEAVY.findall(written.read_text())


@pytest.mark.parametrize(
    "arguments",
    [["-c", "import server.command"], ["-m", "engine", "--help"], ["-m", "engine", "serve", "--help"]],
    ids=["import", "help", "serve-help"],
)
def test_help_imports_neither_torch_nor_the_sdk(arguments: list[str]) -> None:
    run = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        capture_output=True,
        encoding="utf-8",
        env=child_environment(),
        check=True,
    )
    assert not HEAVY.findall(run.stderr)
    assert not re.findall(r"\| +mcp$", run.stderr, re.MULTILINE)


def test_help_names_the_command_and_its_options(tmp_path: Path) -> None:
    shown = Program(tmp_path)("serve", "--help", COLUMNS="200", TERM="dumb")
    assert shown.returncode == 0
    for option in ("--store", "--http", "--read-only", "--tools", "--allow-model", "--token-file", "--allow-host"):
        assert option in shown.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tools", "rank_layer"], "rank_layers"),
        (["--log-level", "loud"], "loud"),
        (["--http", "x"], "HOST:PORT"),
        (["--store", __file__], "is not a folder"),
        (["--allow-model", "smolm"], "'smollm2'"),
        (["--allow-model", "/no/such/folder"], "/no/such/folder"),
        (["--memory-gb", "inf"], "--memory-gb"),
        (["--device-map", "atuo"], "did you mean 'auto'"),
        (["--dtype", "float23"], "did you mean 'float32'"),
        (["--allow-host", "box.example:8765"], "protect HTTP, which is off. Next: add --http"),
    ],
)
def test_wrong_options_end_it_at_once(tmp_path: Path, options: list[str], said: str) -> None:
    result = Program(tmp_path)("serve", "--store", str(tmp_path), *options)
    assert (result.returncode in {2, 3}, result.stdout) == (True, "")  # 3: the model
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_garbage_does_not_kill_it(tmp_path: Path) -> None:
    garbage = ["", "{", "null", "[]", "\0\x01\x02", "7", '"x"', '{"jsonrpc": "2.0"}', "x" * 100_000, '{"id": 1}']
    with running(*serve_command(tmp_path)) as process:
        talk = Talk(process)
        for line in garbage:
            talk.write(line)
        talk.hello()
        for line in [*garbage, '{"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": 7}}']:
            talk.write(line)
        talk.send("tools/call", {"name": "rank_layers", "arguments": [1]})
        assert talk.call("list_concepts")["concepts"]
        out, err = process.communicate(timeout=10)
    assert process.returncode == 0
    assert all(json.loads(line)["jsonrpc"] == "2.0" for line in out.splitlines())
    assert all(line.startswith("{") and json.loads(line)["level"] for line in err.splitlines())


def test_an_unreadable_request_is_answered(tmp_path: Path) -> None:
    with running(*serve_command(tmp_path)) as process:
        talk = Talk(process)
        talk.hello()
        asked = {"jsonrpc": "2.0", "id": "a", "method": "tools/call", "params": {"name": "list_concepts"}}
        for line, number, code, said in [
            (
                json.dumps({**asked, "params": {"name": "list_concepts", "arguments": {"name": "hi \ud83d"}}}),
                "a",
                -32700,
                "lone surrogate",
            ),
            ('{"jsonrpc": "2.0", "id": 3, "method"', 3, -32700, "Invalid JSON"),
            (json.dumps({**asked, "jsonrpc": "1.0"}), "a", -32600, "JSON-RPC"),
            (json.dumps(asked).replace('"list_concepts"', "[" * 9000 + "]" * 9000), "a", -32700, "recursion"),
            (json.dumps(asked).replace('"list_concepts"', "[" * 250 + "]" * 250), "a", -32700, "recursion"),
            (json.dumps(asked).replace('"list_concepts"', "9" * 9000), "a", -32700, "out of range"),
            ("[" * 9000, None, -32700, "recursion"),
            *((json.dumps({**asked, "id": number}), None, -32600, "needs an id") for number in (None, 1.5, [1], True)),
            (json.dumps({**asked, "id": float("nan")}), None, -32600, "needs an id"),
            (json.dumps({**asked, "id": "\ud83d"}), None, -32700, "lone surrogate"),
            (json.dumps({**asked, "params": ["id"]}), "a", -32600, "JSON-RPC"),
            *(
                (line, None, -32600, "one object per line")
                for line in ("7", "null", '"id"', json.dumps([asked, asked]))
            ),
        ]:
            talk.write(line)
            answer = talk.read()
            assert (answer["id"], answer["error"]["code"]) == (number, code)
            assert said in answer["error"]["message"]
        talk.write("")
        talk.write('{"jsonrpc": "1.0", "method": "notifications/initialized"}')
        assert talk.call("list_concepts")["concepts"]
        out, _ = process.communicate(timeout=10)
    assert out == ""


@pytest.mark.parametrize(
    "how",
    [
        "stdin closed",
        pytest.param("SIGINT", marks=pytest.mark.slow),
        pytest.param("SIGTERM", marks=pytest.mark.slow),
        pytest.param("SIGKILL", marks=pytest.mark.slow),
    ],
)
def test_it_ends_quickly_during_a_capture(store: Path, slow_folder: Path, how: str) -> None:
    before = contents(store)
    with running(*serve_command(store, *allow(slow_folder))) as process:
        Talk(process).until_busy()
        if how == "stdin closed":
            assert process.stdin is not None
            process.stdin.close()
        else:
            process.send_signal(signal.Signals[how])
        code, took = ended(process, within=10)
        assert took < 3
        assert code == (-signal.SIGKILL if how == "SIGKILL" else 0)
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    assert contents(store) == before


@pytest.mark.skipif(sys.platform == "win32", reason="opens a pseudo-terminal")
def test_on_a_terminal_it_says_what_it_waits_for_and_the_first_ctrl_c_stops_it(tmp_path: Path) -> None:
    import pty

    keyboard, terminal = pty.openpty()
    with subprocess.Popen(
        serve_command(tmp_path),
        stdin=terminal,
        stdout=terminal,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=child_environment(),
    ) as process:
        os.close(terminal)
        try:
            assert process.stderr is not None
            said = process.stderr.readline()
            assert "waiting for an MCP client on standard input" in said
            assert f"`{shlex.join(['layerscope', *serve_command(tmp_path)[3:]])}`" in said
            assert "--http" in said
            time.sleep(3)  # until it reads
            process.send_signal(signal.SIGINT)  # what Ctrl+C sends
            code, took = ended(process, within=10)
        finally:
            process.kill()
            os.close(keyboard)
        assert (code, took < 3) == (0, True)
        assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize("busy", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_closed_stdout_counts_as_a_disconnect(store: Path, slow_folder: Path, busy: bool) -> None:
    before = contents(store)
    with running(*serve_command(store, *allow(slow_folder))) as process:
        talk = Talk(process)
        if busy:
            talk.until_busy()
        else:
            talk.hello()
        assert process.stdout is not None
        process.stdout.close()
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            talk.send("tools/list")
            time.sleep(0.5)  # the answer has no reader
            process.stdin.close()
        code, _ = ended(process, within=10)
        assert code == 0
        assert process.stderr is not None
        said = process.stderr.read()
    assert "Traceback" not in said
    assert "bug" not in said
    assert '"event": "client disconnected"' in said
    assert contents(store) == before


@pytest.mark.slow
def test_sigterm_during_a_save_leaves_no_partial_file(store: Path, slow_folder: Path) -> None:
    """The file is complete or absent, even if the signal arrives during the write."""
    before = contents(store)
    with running(*serve_command(store, *allow(slow_folder))) as process:
        talk = Talk(process)
        talk.hello()
        asked = {"pairs": many_pairs(120), "model": "slow", "positions": "all", "name": "large", "wait_s": 0}
        talk.call("capture_contrast", **asked)
        deadline = time.monotonic() + 60
        while not list(store.glob(".*.unfinished")):
            assert time.monotonic() < deadline
            assert not (store / "large.json").exists()
            time.sleep(0.001)
        process.terminate()
        code, _ = ended(process, within=15)
    assert code == 0
    assert not list(store.glob(".*"))
    after = contents(store)
    new = after.keys() - before.keys()
    assert new in (set(), {"large.json", "large.pt"})


def test_http_ends_quickly_on_sigterm(store: Path, slow_folder: Path) -> None:
    with running_http(store, *allow(slow_folder)) as (_, process):
        process.terminate()
        code, took = ended(process, within=10)
        assert took < 3
        assert code in {0, -signal.SIGTERM}
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


PROGRAM = """
import logging, sys
from server.command import log_to_stderr
log_to_stderr(sys.argv[1])
logging.getLogger("server").info("ours", extra={"fields": {"seconds": 0.5}})
logging.getLogger("engine.capture").debug("chatter")
logging.getLogger("some.library").info("chatter of others")
logging.getLogger("some.library").warning("two\\nlines")
"""


def lines_of(level: str) -> list[dict[str, object]]:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, level], capture_output=True, text=True, env=child_environment(), check=True
    )
    assert run.stdout == ""
    return [json.loads(line) for line in run.stderr.splitlines()]


def test_each_line_is_an_object_and_other_libraries_only_warn() -> None:
    ours, warning = lines_of("INFO")
    assert (ours["from"], ours["level"], ours["event"], ours["seconds"]) == ("server", "info", "ours", 0.5)
    assert (warning["from"], warning["event"]) == ("some.library", "two\nlines")
    assert ours["time"]


def test_the_log_level_applies_to_layerscope() -> None:
    assert [line["event"] for line in lines_of("DEBUG")] == ["ours", "chatter", "two\nlines"]
    assert [line["event"] for line in lines_of("ERROR")] == ["two\nlines"]


def test_a_traceback_stays_on_the_line_of_its_error() -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        record = logging.LogRecord("server", logging.ERROR, __file__, 1, "bug", None, sys.exc_info())
    text = JsonLines().format(record)
    assert "\n" not in text
    assert "ValueError: first\nsecond" in json.loads(text)["traceback"]


def test_values_without_a_json_type_are_written_as_text() -> None:
    record = logging.LogRecord("server", logging.INFO, __file__, 1, "call", None, None)
    record.fields = {"what": {1}, "where": logging}
    assert json.loads(JsonLines().format(record))["what"] == "{1}"
