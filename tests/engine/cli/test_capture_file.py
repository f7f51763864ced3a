"""`layerscope capture --prompts`: resume after a kill, a full disk, and bounded memory."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.engine.cli.conftest import assert_failed
from tests.program import Program, Result

COUNT = 2600

_SMALL_DISK = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
runpy.run_module("engine", run_name="__main__", alter_sys=True)
"""
_MEMORY = """
import atexit, pathlib, runpy, sys
status = pathlib.Path("/proc/self/status")
atexit.register(lambda: print([line.split()[1] for line in status.read_text().splitlines() if "VmHWM" in line][0]))
runpy.run_module("engine", run_name="__main__", alter_sys=True)
"""


def write_prompts(path: Path, count: int, tokens: int = 4) -> None:
    path.write_text("".join(f"w{3 + i % 100} w{3 + i // 100 % 100} {'w7 ' * (tokens - 2)}\n" for i in range(count)))


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def wrapped(program: Program, code: str, *arguments: str, **environment: str) -> Result:
    return program.python("-c", code, *arguments, PYTHONPATH=os.pathsep.join(sys.path), **environment)


def test_a_killed_capture_is_resumed_also_after_a_full_disk(layerscope: Program, tiny_folder: Path) -> None:
    write_prompts(layerscope.folder / "many.txt", COUNT)
    command = ("capture", "--model", str(tiny_folder), "--prompts", "many.txt", "--positions", "last", "--quiet")
    assert layerscope(*command, "--output", "whole").returncode == 0
    whole = shards(layerscope.folder / "whole")
    assert list(whole) == [f"{start:012d}.safetensors" for start in range(0, COUNT, 512)]

    folder = layerscope.folder / "mine"
    with layerscope.started(*command, "--output", "mine") as process:
        while not shards(folder) and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    saved = shards(folder)
    assert 0 < len(saved) < len(whole)
    assert not (layerscope.folder / "mine.json").exists()
    listed = layerscope("list", "--store", ".")
    assert f"mine unfinished: {len(saved)} shard" in listed.stdout

    full = wrapped(layerscope, _SMALL_DISK, *command, "--output", "mine")
    assert_failed(full, 5)
    assert "File too large" in full.stderr
    assert "free some disk space, then run the same command again" in " ".join(full.stderr.split())
    assert shards(folder) == saved

    again = layerscope(*command, "--output", "mine")
    assert again.returncode == 0, again.stderr
    assert shards(folder) == whole
    assert sorted(path.name for path in folder.iterdir()) == [*whole, "plan.json"]
    records = [json.loads((layerscope.folder / f"{name}.json").read_text()) for name in ("whole", "mine")]
    assert records[0]["statistics"] == records[1]["statistics"]

    shown = layerscope("show", "mine", "--store", ".")
    assert shown.returncode == 0, shown.stderr
    assert "2,600 prompts, 4 of 4 layers" in " ".join(shown.stdout.split())
    assert "mine" in layerscope("list", "--store", ".").stdout
    assert_failed(layerscope(*command, "--output", "mine"), 5)


def test_another_list_of_prompts_is_refused(layerscope: Program, tiny_folder: Path) -> None:
    write_prompts(layerscope.folder / "many.txt", 20)
    command = ("capture", "--model", str(tiny_folder), "--prompts", "many.txt", "--positions", "last", "--quiet")
    assert layerscope(*command).returncode == 0
    (layerscope.folder / "activations" / "tiny_many.json").unlink()
    write_prompts(layerscope.folder / "many.txt", 21)
    result = layerscope(*command)
    assert_failed(result, 5)
    assert "the texts of the prompts changed" in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from Linux")
def test_memory_does_not_grow_with_the_number_of_prompts(layerscope: Program, tiny_folder: Path) -> None:
    """In memory, the states of 3,000 prompts would take 80 MB more than those of 600.

    Freed memory is returned to the system at once, because the amount that the C library retains varies by 8% between
    runs, independent of the number of prompts.
    """
    peaks = []
    for count in (600, 3000):
        write_prompts(layerscope.folder / "many.txt", count, tokens=60)
        command = ("capture", "--model", str(tiny_folder), "--prompts", "many.txt", "--force", "--quiet")
        result = wrapped(layerscope, _MEMORY, *command, MALLOC_MMAP_THRESHOLD_="1000000")
        assert result.returncode == 0, result.stderr
        peaks.append(int(result.stdout.split()[-1]))
    assert peaks[1] < 1.05 * peaks[0]


def test_options_that_conflict_with_a_file_are_refused(layerscope: Program) -> None:
    assert_failed(layerscope("capture", "--prompts", "none.txt"), 2)
    assert_failed(layerscope("capture", "--prompt", "hello", "--store-dtype", "bfloat16"), 2)
    (layerscope.folder / "some.txt").write_text("hello\n")
    assert_failed(layerscope("capture", "--prompts", "some.txt", "--store-dtype", "int4"), 2)
