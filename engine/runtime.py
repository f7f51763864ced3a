"""What a run knows of its surroundings: progress callbacks, launcher processes, main memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import psutil

from engine.errors import CaptureError

Progress = Callable[[int, int], None]
"""Called with how much is done, prompts or layers, and how much there is."""

Steps = Callable[[str, int, int], None]
"""Called with what is done beside running prompts, how much of it is, and of how much, 0 while that is unknown."""


def untold(*_said: object) -> None:
    """For work of which nobody wants to know how far it is: a `Progress` and a `Steps`."""


_LONGEST = timedelta(
    days=30
)  # that one may wait for another, whose share may take as long; the dead are noticed at once
_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@dataclass(frozen=True)
class Processes:
    """The processes that share some work, seen from one of them; alone unless told.

    Attributes:
        rank: Number of this one.
        count: How many there are, on all machines.
        local_rank: Number of this one among those of its machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the one that speaks, begins and ends."""
        return self.rank == 0

    @property
    def said(self) -> str:
        """What this one calls itself, in the launcher's words; empty if it is alone."""
        return f"rank {self.rank} of {self.count}" if self.count > 1 else ""

    def owns(self, number: int) -> bool:
        """Whether a piece of the work is this one's: they take turns."""
        return number % self.count == self.rank

    def wait(self) -> None:
        """Go on when all are here; every one must call it as often. The first call joins them.

        Raises:
            CaptureError: Another one has ended, or they cannot be joined.
        """
        if self.count == 1:
            return
        from accelerate import PartialState

        try:
            # Through the processor, wherever the model runs: nothing but waiting is done together.
            joined = PartialState(cpu=True, timeout=_LONGEST)
            if joined.num_processes == self.count:
                joined.wait_for_everyone()
        except RuntimeError as error:
            raise CaptureError(
                "another process has ended, for which this one waited",
                expected="every process to go on to the end",
                next_step="see what it said, then give the same command again: what is saved is not run again",
            ) from error
        if joined.num_processes != self.count:  # set up before, without GPUs, it takes each for the only one
            raise CaptureError(
                f"accelerate was set up for {joined.num_processes} of {self.count} processes",
                next_step="call find_processes().wait() before anything of accelerate",
            )


ALONE = Processes()


def find_processes() -> Processes:
    """What a launcher that follows torch's conventions said; alone without a launcher.

    Example:
        >>> find_processes()
        Processes(rank=0, count=1, local_rank=0)
    """
    told = [os.environ.get(name, "") for name in _NAMES]
    if not all(value.isdecimal() for value in told):
        return ALONE
    return Processes(*map(int, told))


_OWN_GROUPS = Path("/proc/self/cgroup")
_ALL_GROUPS = Path("/sys/fs/cgroup")


class MainMemory(NamedTuple):
    """Bytes of main memory.

    Attributes:
        total: What the process could have if it were alone.
        free: What it can still take, all that the system would give up for it included.
        limited: Whether a container leaves it less than the machine has.
    """

    total: int
    free: int
    limited: bool


class _Version(NamedTuple):
    """Where a version of control groups keeps what."""

    folder: str
    limit: str
    used: str
    reclaimable: str


_SECOND = _Version("", "memory.max", "memory.current", "inactive_file")
_FIRST = _Version("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def main_memory(own_groups: Path = _OWN_GROUPS, all_groups: Path = _ALL_GROUPS) -> MainMemory:
    """What there is, of the machine and within the limits of the groups that this process is in.

    Args:
        own_groups: The file that names the groups of the process.
        all_groups: The folder of all groups.

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
    """Limit and used bytes of every group that has a limit, the process's own and those around it."""
    with suppress(OSError):  # not on Linux, or a container that does not show them
        for line in own_groups.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            version = _FIRST if controllers else _SECOND
            top = all_groups / version.folder
            group = top / path.lstrip("/")
            if not group.is_dir():  # the path is the host's, and the container sees its own group as the top
                group = top
            for one in (group, *group.parents):
                with suppress(OSError, ValueError):  # the topmost has no limit; "max" is none
                    yield _limit(one, version)
                if one == top:
                    break


def _limit(group: Path, version: _Version) -> tuple[int, int]:
    limit = int((group / version.limit).read_text())
    used = int((group / version.used).read_text())
    statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return limit, used - int(statistics.get(version.reclaimable, 0))
