"""Several processes: what a launcher says, whose turn it is, and what waiting comes to when another one has ended."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from engine.processes import ALONE, Processes, find_processes

_WAIT = """
import sys, time
from engine import LayerscopeError, find_processes
processes = find_processes()
assert processes.count == 2
processes.wait()
if processes.rank == int(sys.argv[1]):
    sys.exit(1)
try:
    processes.wait()
except LayerscopeError as error:
    print(error)
"""


def started(code: str, *arguments: str, folders: tuple[str, str] = (".", ".")) -> "list[subprocess.Popen[str]]":
    """Two processes that know of each other, without a launcher that ends one when the other has ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return [
        subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            cwd=folders[rank],
            env=os.environ
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        for rank in (0, 1)
    ]


@contextmanager
def ended_at_last(processes: "list[subprocess.Popen[str]]") -> Iterator[None]:
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_without_a_launcher_there_is_one_that_does_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert find_processes() == ALONE == Processes(rank=0, count=1, local_rank=0)
    assert (ALONE.is_main, ALONE.said) == (True, "")
    assert all(ALONE.owns(number) for number in range(5))
    ALONE.wait()
    assert not torch.distributed.is_initialized()
    monkeypatch.setenv("WORLD_SIZE", "4")  # as in a cluster's environment, without a launcher
    monkeypatch.setenv("RANK", "0")
    assert find_processes() == ALONE


def test_a_launcher_says_who_is_who(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert find_processes() == Processes(rank=5, count=8, local_rank=1)
    assert (find_processes().is_main, find_processes().said) == (False, "rank 5 of 8")


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_piece_is_done_once(count: int) -> None:
    shares = [[number for number in range(20) if Processes(rank, count).owns(number)] for rank in range(count)]
    assert sorted(number for share in shares for number in share) == list(range(20))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


_ALONE = """
from accelerate import PartialState
from engine import LayerscopeError, find_processes
assert PartialState().num_processes == 1
try:
    find_processes().wait()
except LayerscopeError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="with GPUs accelerate counts right")
def test_waiting_is_refused_where_accelerate_would_not_wait() -> None:
    processes = started(_ALONE)
    with ended_at_last(processes):
        for process in processes:
            said, errors = process.communicate(timeout=120)
            assert "accelerate was set up for 1 of 2 processes" in said, errors


@pytest.mark.parametrize("gone", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_who_waits_for_one_that_has_ended_is_told(gone: int) -> None:
    processes = started(_WAIT, str(gone))
    with ended_at_last(processes):
        said, errors = processes[1 - gone].communicate(timeout=120)
        assert "another process has ended, for which this one waited" in said, errors
        assert "give the same command again" in said
