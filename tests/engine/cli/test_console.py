"""What the command line prints: hostile names and records as escapes, and repeated lines of the log once."""

import json
import logging
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from engine.cli.console import Narrator, print_lines
from tests.program import Program, Result

# Sets the title, clears the screen, deletes, starts a sequence in one byte, reverses the text that follows.
HOSTILE = "\x1b]0;title\x07\x1b[2J\x7f\x08\x9b31m\u202e\u2066"
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
OF_RICH = re.compile(r"\x1b\[[0-9;]*m|\r\n")
_FIXED = {"kind", "source"}  # a record with other values is damaged


def hostile(value: Any, key: str = "") -> Any:
    """The JSON with control characters in every string."""
    if isinstance(value, dict):
        if key == "data":
            return value
        return {
            (inner + HOSTILE if key in {"versions", "groups"} else inner): hostile(item, inner)
            for inner, item in value.items()
        }
    if isinstance(value, list):
        return [hostile(item, key) for item in value]
    return value + HOSTILE if isinstance(value, str) and key not in _FIXED else value


def make_hostile(capture: Path) -> None:
    """Put control characters into every string of a capture's record."""
    path = capture.with_suffix(".json")
    record = json.loads(path.read_text())
    path.write_text(json.dumps(hostile(record), ensure_ascii=False))


@pytest.fixture
def hostile_store(contrasts: Path) -> Path:
    """Three captures with hostile records, one of them with a hostile file name too, and a damaged one."""
    for name in ("loudness", "warmth", "prompt"):
        make_hostile(contrasts / name)
    for suffix in (".pt", ".json"):
        shutil.copyfile(contrasts / f"loudness{suffix}", contrasts / f"a{HOSTILE}{suffix}")
    (contrasts / f"b{HOSTILE}.json").write_text("{")
    return contrasts


def assert_harmless(result: Result, *, ends_well: bool | None = True) -> None:
    """Check that neither stream has a control character, and that the text is shown escaped."""
    said = result.stdout + result.stderr
    assert "Traceback" not in said
    assert CONTROL.search(said) is None, CONTROL.search(said)
    if ends_well is not None:
        assert (result.returncode == 0) is ends_well, said


@pytest.mark.parametrize(
    "arguments",
    [
        "list",
        "list --json",
        "show loudness",
        "show loudness --json",
        "rank loudness",
        "rank loudness --json",
        "rank loudness --csv",
        "visualize loudness --no-plot",
        "visualize loudness --no-plot --layer 1",
        "visualize prompt --no-plot",
        "compare loudness warmth",
        "compare loudness warmth --json",
        "directions loudness",
        "tui",
        "tui loudness",
    ],
)
@pytest.mark.usefixtures("hostile_store")
def test_a_hostile_record_reaches_no_terminal(layerscope: Program, arguments: str) -> None:
    result = layerscope(*arguments.split())
    assert_harmless(result)
    assert not arguments.endswith("--json") or json.loads(result.stdout)


@pytest.mark.usefixtures("hostile_store")
def test_names_and_fields_are_shown_escaped(layerscope: Program) -> None:
    assert r"\x1b]0;title" in layerscope("list").stdout
    shown = "".join(layerscope("show", "loudness").stdout.split())
    assert r"\x1b]0;title\x07\x1b[2J\x7f\x08\x9b31m\u202e\u2066" in shown


@pytest.mark.usefixtures("hostile_store")
def test_json_keeps_what_it_escapes(layerscope: Program) -> None:
    record = json.loads(layerscope("show", "loudness", "--json").stdout)
    assert record["concept"] == f"loudness{HOSTILE}"


@pytest.mark.usefixtures("hostile_store")
def test_errors_show_hostile_names_escaped(layerscope: Program) -> None:
    for arguments in (["show", f"b{HOSTILE}"], ["rank", f"no{HOSTILE}"], ["read", "loudness", "-p", "w5"]):
        assert_harmless(layerscope(*arguments), ends_well=False)
    assert_harmless(layerscope("show", f"a{HOSTILE}"), ends_well=None)
    assert_harmless(layerscope("tui", "--filter", f"x{HOSTILE}:1"), ends_well=False)


def test_bugs_and_stray_warnings_show_hostile_names_escaped(
    layerscope: Program, hostile_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = hostile_store.rename(hostile_store.with_name(f"of {HOSTILE}"))
    (folder / "warmth.json").unlink()  # reading tensors without a record warns
    result = layerscope("directions", f"of {HOSTILE}/warmth.pt")
    assert_harmless(result, ends_well=None)
    assert "has no JSON record" in result.stderr

    def fail(*_arguments: object, **_options: object) -> None:
        raise ValueError(HOSTILE)

    monkeypatch.setattr("engine.cli.store.list_captures", fail)
    result = layerscope("list")
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert CONTROL.search(result.stderr) is None
    assert "ValueError: \\x1b]0;title" in result.stderr


def test_a_reading_of_hostile_text(layerscope: Program, hostile_store: Path, tiny_folder: Path) -> None:
    path = hostile_store / "loudness.json"
    record = json.loads(path.read_text())
    for field in ("model", "alias", "revision", "dtype", "site", "positions"):
        record["provenance"][field] = (record["provenance"][field] or "").removesuffix(HOSTILE) or None
    path.write_text(json.dumps(record))
    model = ("--model", str(tiny_folder))
    for more in (["--json"], ["--output", f"x{HOSTILE}.svg"]):
        assert_harmless(layerscope("read", "loudness", "--prompt", f"w5{HOSTILE} w6", *model, *more))


@pytest.mark.usefixtures("hostile_store")
def test_a_terminal_gets_colors_and_nothing_else(layerscope: Program) -> None:
    ours, theirs = pytest.importorskip("pty").openpty()
    environment = layerscope.environment(TERM="xterm-256color", COLUMNS="100")
    command = layerscope.command("show", "loudness")
    with subprocess.Popen(command, cwd=layerscope.folder, env=environment, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        said = b""
        while part := _read(ours):
            said += part
        assert process.wait(60) == 0, said
    os.close(ours)
    text = said.decode()
    assert OF_RICH.search(text)
    assert CONTROL.search(OF_RICH.sub("", text)) is None


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux reports the end of a terminal as an error
        return b""


def test_messages_lines_and_spinners(capsys: pytest.CaptureFixture[str]) -> None:
    narrator = Narrator(quiet=False)
    narrator.say(f"[bold]loading[/bold] :smile: {HOSTILE}")
    with narrator.working(f"[red]{HOSTILE}"):
        pass
    print_lines(f"saved\t{HOSTILE}\n")
    printed = capsys.readouterr()
    assert CONTROL.search(printed.out + printed.err) is None
    assert r"[bold]loading[/bold] :smile: \x1b]0;title\x07" in printed.err
    assert printed.out.startswith("saved\t\\x1b]0;title\\x07")


def test_the_log_shows_a_repeated_line_once(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("engine.capture")
    with Narrator(quiet=False).engine_log():
        for shard in range(3):
            log.info("running prompts one at a time: %s", "code was added")
            log.info("out of memory in a batch of %d tokens", 512 >> shard)
    said = capsys.readouterr().err.split("\n")
    assert sum("one at a time" in line for line in said) == 1
    assert sum("out of memory" in line for line in said) == 3
