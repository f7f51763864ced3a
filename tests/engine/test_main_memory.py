"""Free memory is that of the machine, or what the limits of a container leave of it."""

from pathlib import Path

import psutil
import pytest

from engine.main_memory import main_memory

Version = tuple[str, str, str, str]

GB = 10**9
FIRST = ("memory/", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
SECOND = ("", "memory.max", "memory.current", "inactive_file")


class Groups:
    """Control groups as Linux shows them, in a folder of the test's."""

    def __init__(self, folder: Path, version: Version, own: str) -> None:
        self.file, self.folder, self._version = folder / "own", folder / "groups", version
        controllers, others = ("memory", "9:name=systemd:/\n3:cpu,cpuacct:/a\n") if version is FIRST else ("", "")
        self.file.write_text(f"{others}0:{controllers}:{own}\n")
        self.folder.mkdir()

    def add(self, path: str, limit: str, used: int, reclaimable: int = 0) -> None:
        """A group."""
        top, limit_name, used_name, reclaimable_name = self._version
        group = self.folder / f"{top}{path}"
        group.mkdir(parents=True, exist_ok=True)
        (group / limit_name).write_text(f"{limit}\n")
        (group / used_name).write_text(f"{used}\n")
        (group / "memory.stat").write_text(f"anon 5\n{reclaimable_name} {reclaimable}\n")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 64 GB, 40 are available."""
    memory = psutil.virtual_memory()._replace(total=64 * GB, available=40 * GB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


@pytest.fixture(params=[FIRST, SECOND], ids=["first version", "second version"])
def version(request: pytest.FixtureRequest) -> Version:
    """Where a version of control groups keeps what."""
    found: Version = request.param
    return found


def test_a_limit_counts_less_what_is_used_but_for_files_that_can_be_read_anew(tmp_path: Path, version: Version) -> None:
    groups = Groups(tmp_path, version, "/job/one")
    groups.add("job/one", str(8 * GB), 3 * GB, 1 * GB)
    assert main_memory(groups.file, groups.folder) == (8 * GB, 6 * GB, True)


def test_the_narrowest_of_the_groups_around_it_counts(tmp_path: Path, version: Version) -> None:
    groups = Groups(tmp_path, version, "/job/one")
    groups.add("job/one", "max" if version is SECOND else str(2**63 - 4096), 3 * GB)
    groups.add("job", str(16 * GB), 15 * GB)
    assert main_memory(groups.file, groups.folder) == (16 * GB, 1 * GB, True)


def test_in_a_container_that_does_not_see_its_path_its_own_group_is_the_top(tmp_path: Path, version: Version) -> None:
    groups = Groups(tmp_path, version, "/docker/0123456789ab")
    groups.add("", str(4 * GB), 1 * GB)
    assert main_memory(groups.file, groups.folder) == (4 * GB, 3 * GB, True)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(2 * GB, (2 * GB, 0, True)), (500 * GB, (64 * GB, 40 * GB, False))],
    ids=["more is used than allowed", "more is allowed than there is"],
)
def test_limits_that_leave_nothing_and_that_limit_nothing(
    tmp_path: Path, version: Version, limit: int, expected: tuple[int, int, bool]
) -> None:
    groups = Groups(tmp_path, version, "/job")
    groups.add("job", str(limit), 3 * GB)
    assert main_memory(groups.file, groups.folder) == expected


def test_where_there_are_no_groups_the_machine_counts(tmp_path: Path) -> None:
    assert main_memory(tmp_path / "missing", tmp_path) == (64 * GB, 40 * GB, False)
