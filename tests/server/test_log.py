"""The log: one JSON object a line on stderr, whoever writes it, and nothing on stdout."""

import json
import logging
import subprocess
import sys

from server.log import JsonLines
from tests.server.conftest import child_environment

PROGRAM = """
import logging, sys
from server.log import log_to_stderr
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


def test_the_level_is_that_of_our_own_words() -> None:
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


def test_what_json_does_not_know_is_written_as_text() -> None:
    record = logging.LogRecord("server", logging.INFO, __file__, 1, "call", None, None)
    record.fields = {"what": {1}, "where": logging}
    assert json.loads(JsonLines().format(record))["what"] == "{1}"
