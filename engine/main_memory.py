"""How much main memory there is for this process: the machine's, or less where a container has a limit.

Containers are control groups of Linux: each group of a path may have a limit, and the narrowest counts. psutil sees the
machine only. Knows both versions of control groups (https://docs.kernel.org/admin-guide/cgroup-v2.html and
cgroup-v1/memory.html); knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

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
