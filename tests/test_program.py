"""The program in this process prints the same as the script and restores the process."""

import gc
import logging
import os
import signal
import sys
import warnings
from pathlib import Path

import pytest

from tests.program import Program


def state() -> list[object]:
    """Process state that a program could leave changed."""
    root = logging.getLogger()
    return [
        *(Path.cwd(), dict(os.environ), sys.argv, sys.stdin, sys.stdout, sys.stderr, sys.excepthook),
        *(root.handlers[:], root.level, warnings.filters[:], warnings.showwarning, gc.isenabled()),
        *(signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)),
    ]


@pytest.mark.parametrize(
    ("arguments", "code"), [(("list",), 5), (("list", "--store", "."), 0), (("list", "--bogus"), 2)], ids=str
)
def test_it_ends_like_the_script(tmp_path: Path, arguments: tuple[str, ...], code: int) -> None:
    before = state()
    program = Program(tmp_path)
    here, there = program(*arguments), program.script(*arguments)
    assert state() == before
    assert here.returncode == there.returncode == code
    assert (here.stdout, here.stderr) == (there.stdout, there.stderr)
