"""Runtime environment: progress callbacks, launcher processes, main memory."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, TypeVar

import psutil

from engine.errors import CaptureError

Progress = Callable[[int, int], None]
"""Called with the number of prompts or layers done, and the total."""

Steps = Callable[[str, int, int], None]
"""Called with the name of a step other than running prompts, the number of items done, and the total (0: unknown)."""


def ignore_progress(*_said: object) -> None:
    """Ignore progress; works as a `Progress` and as a `Steps` callback."""


@contextmanager
def paused_collection() -> Iterator[None]:
    """Pause Python's garbage collector while many objects are made that all stay.

    Each new tensor counts as possible garbage: tens of thousands of them start full collections, which take longer than
    making the tensors.
    """
    if not gc.isenabled():  # paused by the caller, or by another thread
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# A process may wait as long as another one needs for its share; an exit is noticed at once.
_LONGEST = timedelta(days=30)
_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")

Item = TypeVar("Item")


@dataclass(frozen=True)
class Processes:
    """The processes that share a run, seen from one of them; a single one by default.

    Attributes:
        rank: Index of this process.
        count: Number of processes on all machines.
        local_rank: Index of this process on its machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints, starts and finishes the run."""
        return self.rank == 0

    @property
    def said(self) -> str:
        """Label of this process in the launcher's terms; empty if it is the only one."""
        return f"rank {self.rank} of {self.count}" if self.count > 1 else ""

    def owns(self, number: int) -> bool:
        """Whether an item belongs to this process; items are assigned round-robin."""
        return number % self.count == self.rank

    def wait(self) -> None:
        """Wait until every process has called this method.

        Every process must call it the same number of times. The first call joins the processes.

        Raises:
            CaptureError: Another process exited, or the processes cannot be joined.
        """
        if self.count == 1:
            return
        from accelerate import PartialState

        with _none_exits():
            # On the CPU even if the model is on a GPU: the processes synchronize, and `gather` exchanges small pickled
            # objects. If the caller set up accelerate with GPUs, both use NCCL.
            joined = PartialState(cpu=True, timeout=_LONGEST)
            if joined.num_processes == self.count:
                joined.wait_for_everyone()
        if joined.num_processes != self.count:  # if set up earlier without GPUs, accelerate counts only this process
            raise CaptureError(
                f"accelerate was set up for {joined.num_processes} of {self.count} processes",
                next_step="call find_processes().wait() before using accelerate",
            )

    def gather(self, item: Item) -> list[Item]:
        """Wait like `wait`, and return the items of all processes, in the order of their ranks.

        Args:
            item: A small object, which is pickled.

        Example:
            >>> Processes().gather("on")
            ['on']
        """
        self.wait()
        if self.count == 1:
            return [item]
        from accelerate.utils import gather_object

        with _none_exits():
            return [*gather_object([item])]


@contextmanager
def _none_exits() -> Iterator[None]:
    """Explain that another process exited.

    Raises:
        CaptureError: It did.
    """
    try:
        yield
    except RuntimeError as error:
        raise CaptureError(
            "another process exited while this one was waiting for it",
            expected="every process to run to the end",
            next_step="read its output, then run the same command again to resume from the saved shards",
        ) from error


ALONE = Processes()


def find_processes() -> Processes:
    """Read the processes of a run from the launcher's environment variables.

    These are torch's `RANK`, `WORLD_SIZE` and `LOCAL_RANK`. Without a launcher, this process is the only one.

    Example:
        >>> find_processes()
        Processes(rank=0, count=1, local_rank=0)
    """
    values = [os.environ.get(name, "") for name in _NAMES]
    if not all(value.isdecimal() for value in values):
        return ALONE
    return Processes(*map(int, values))


_OWN_GROUPS = Path("/proc/self/cgroup")
_ALL_GROUPS = Path("/sys/fs/cgroup")


class MainMemory(NamedTuple):
    """Size of main memory, in bytes.

    Attributes:
        total: Memory that the process could use if it ran alone.
        free: Memory that it can still use, including what the system would reclaim for it.
        limited: Whether a container limits the process to less than the machine has.
    """

    total: int
    free: int
    limited: bool


class _Version(NamedTuple):
    """File and field names of a cgroup version."""

    folder: str
    limit: str
    used: str
    reclaimable: str


_V2 = _Version("", "memory.max", "memory.current", "inactive_file")
_V1 = _Version("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def main_memory(own_groups: Path = _OWN_GROUPS, all_groups: Path = _ALL_GROUPS) -> MainMemory:
    """Main memory of the machine, within the cgroup limits of this process.

    Args:
        own_groups: File that lists the cgroups of the process.
        all_groups: Root folder of all cgroups.

    Example:
        >>> 0 < main_memory().free <= main_memory().total
        True
    """
    machine = psutil.virtual_memory()
    total, free = int(machine.total), int(machine.available)
    for limit, used in _limits(own_groups, all_groups):
        total, free = min(total, limit), min(free, max(limit - used, 0))
    return MainMemory(total, free, limited=total < machine.total)


def _limits(own_groups: Path, all_groups: Path) -> Iterator[tuple[int, int]]:
    """Limit and usage, in bytes, of every cgroup around the process that has a limit."""
    with suppress(OSError):  # not Linux, or a container that hides them
        for line in own_groups.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            version = _V1 if controllers else _V2
            top = all_groups / version.folder
            group = top / path.lstrip("/")
            if not group.is_dir():  # the path is the host's; a container sees its own cgroup as the root
                group = top
            for one in (group, *group.parents):
                with suppress(OSError, ValueError):  # the root has no limit file; "max" means no limit
                    yield _limit(one, version)
                if one == top:
                    break


def _limit(group: Path, version: _Version) -> tuple[int, int]:
    limit = int((group / version.limit).read_text())
    used = int((group / version.used).read_text())
    statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return limit, used - int(statistics.get(version.reclaimable, 0))
