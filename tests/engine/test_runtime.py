"""Launcher processes: detection, round-robin shares, waiting, and available memory."""

import gc
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch

from engine.runtime import ALONE, Processes, find_processes, main_memory, paused_collection

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
    """Two processes that know each other, without a launcher that would kill one when the other exits."""
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


def test_without_a_launcher_there_is_a_single_process(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_launcher_sets_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert find_processes() == Processes(rank=5, count=8, local_rank=1)
    assert (find_processes().is_main, find_processes().said) == (False, "rank 5 of 8")


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_item_belongs_to_one_process(count: int) -> None:
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
@pytest.mark.skipif(torch.cuda.is_available(), reason="with GPUs, accelerate counts correctly")
def test_waiting_is_refused_if_accelerate_would_not_wait() -> None:
    processes = started(_ALONE)
    with ended_at_last(processes):
        for process in processes:
            said, errors = process.communicate(timeout=120)
            assert "accelerate was set up for 1 of 2 processes" in said, errors


_GATHER = """
from engine import find_processes
processes = find_processes()
print(processes.gather(f"from {processes.rank}"), processes.gather("again"))
"""


@pytest.mark.slow
def test_every_process_gets_the_texts_of_all() -> None:
    processes = started(_GATHER)
    with ended_at_last(processes):
        for process in processes:
            said, errors = process.communicate(timeout=120)
            assert "['from 0', 'from 1'] ['again', 'again']" in said, errors


@pytest.mark.parametrize("gone", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_waiting_for_a_process_that_exited_fails(gone: int) -> None:
    processes = started(_WAIT, str(gone))
    with ended_at_last(processes):
        said, errors = processes[1 - gone].communicate(timeout=120)
        assert "another process exited while this one was waiting for it" in said, errors
        assert "run the same command again" in said


Version = tuple[str, str, str, str]

GB = 10**9
FIRST = ("memory/", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
SECOND = ("", "memory.max", "memory.current", "inactive_file")


class Groups:
    """Control groups in a temporary folder, laid out as on Linux."""

    def __init__(self, folder: Path, version: Version, own: str) -> None:
        self.file, self.folder, self._version = folder / "own", folder / "groups", version
        controllers, others = ("memory", "9:name=systemd:/\n3:cpu,cpuacct:/a\n") if version is FIRST else ("", "")
        self.file.write_text(f"{others}0:{controllers}:{own}\n")
        self.folder.mkdir()

    def add(self, path: str, limit: str, used: int, reclaimable: int = 0) -> None:
        """Add a cgroup; sizes are in bytes."""
        top, limit_name, used_name, reclaimable_name = self._version
        group = self.folder / f"{top}{path}"
        group.mkdir(parents=True, exist_ok=True)
        (group / limit_name).write_text(f"{limit}\n")
        (group / used_name).write_text(f"{used}\n")
        (group / "memory.stat").write_text(f"anon 5\n{reclaimable_name} {reclaimable}\n")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 64 GB of memory, 40 GB of it available."""
    memory = psutil.virtual_memory()._replace(total=64 * GB, available=40 * GB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


@pytest.fixture(params=[FIRST, SECOND], ids=["first version", "second version"])
def version(request: pytest.FixtureRequest) -> Version:
    """File and field names of a cgroup version."""
    found: Version = request.param
    return found


def test_free_memory_is_the_limit_minus_usage_without_reclaimable_files(tmp_path: Path, version: Version) -> None:
    groups = Groups(tmp_path, version, "/job/one")
    groups.add("job/one", str(8 * GB), 3 * GB, 1 * GB)
    assert main_memory(groups.file, groups.folder) == (8 * GB, 6 * GB, True)


def test_the_tightest_parent_limit_applies(tmp_path: Path, version: Version) -> None:
    groups = Groups(tmp_path, version, "/job/one")
    groups.add("job/one", "max" if version is SECOND else str(2**63 - 4096), 3 * GB)
    groups.add("job", str(16 * GB), 15 * GB)
    assert main_memory(groups.file, groups.folder) == (16 * GB, 1 * GB, True)


def test_a_container_that_does_not_see_its_path_uses_the_root(tmp_path: Path, version: Version) -> None:
    groups = Groups(tmp_path, version, "/docker/0123456789ab")
    groups.add("", str(4 * GB), 1 * GB)
    assert main_memory(groups.file, groups.folder) == (4 * GB, 3 * GB, True)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(2 * GB, (2 * GB, 0, True)), (500 * GB, (64 * GB, 40 * GB, False))],
    ids=["usage above the limit", "limit above the machine's memory"],
)
def test_limits_below_usage_and_above_the_machine(
    tmp_path: Path, version: Version, limit: int, expected: tuple[int, int, bool]
) -> None:
    groups = Groups(tmp_path, version, "/job")
    groups.add("job", str(limit), 3 * GB)
    assert main_memory(groups.file, groups.folder) == expected


def test_without_cgroups_the_memory_of_the_machine_counts(tmp_path: Path) -> None:
    assert main_memory(tmp_path / "missing", tmp_path) == (64 * GB, 40 * GB, False)


def test_garbage_is_collected_again_after_a_pause_and_after_an_error() -> None:
    with paused_collection():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ValueError, match="stopped"), paused_collection():
        raise ValueError("stopped")
    assert gc.isenabled()


def test_a_pause_of_the_caller_goes_on() -> None:
    gc.disable()
    try:
        with paused_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
