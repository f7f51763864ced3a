"""Sixty kills of the real command, at random moments and at the file operations of its save."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import engine
from tests.engine.cli.test_capture_file import write_prompts
from tests.program import Program

pytestmark = pytest.mark.slow
KILLS = 10  # of each test; six tests make sixty
PROMPTS = 1100  # in three shards

# The command, killed before its Nth operation that changes the store; with N = 0 it ends and prints how many there are.
_KILLED_IN_SAVE = """
import atexit, os, runpy, signal, sys

store, stop = os.path.abspath(sys.argv.pop(1)), int(sys.argv.pop(1))
done = []

def count(event, arguments):
    changes = event in ("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir")
    if event == "open" and isinstance(arguments[0], str):
        changes = bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
    if changes and os.path.abspath(os.fspath(arguments[0])).startswith(store + os.sep):
        done.append(event)
        if len(done) == stop:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)
atexit.register(lambda: print(len(done), file=sys.stderr))
runpy.run_module("engine", run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class Target:
    """A command to kill, the store it saves to, and what it must leave there in the end."""

    program: Program
    command: tuple[str, ...]
    before: dict[str, bytes]  # the store before the command
    whole: dict[str, bytes]  # the tensors that an uninterrupted run saves
    seconds: float  # that it takes
    operations: int  # that change the store

    @property
    def store(self) -> Path:
        return self.program.folder / "store"

    def killed_at_random(self, dice: random.Random) -> bool:
        """Kill the command at a random moment; return whether it still ran."""
        with self.program.started(*self.command) as process:
            try:
                process.wait(dice.uniform(0.4, 1) * self.seconds)  # the first part only imports libraries
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
            return process.wait() == -signal.SIGKILL

    def killed_in_save(self, dice: random.Random) -> bool:
        """Kill the command before a random operation that changes the store."""
        return run_to(self.program, self.command, dice.randint(1, self.operations)).returncode == -signal.SIGKILL

    def require_intact(self) -> None:
        """The store can be read, and the neighbor is unchanged."""
        listed = self.program("list", "--store", "store")
        assert listed.returncode == 0, listed.stderr
        assert "neighbor" in listed.stdout
        neighbor = {name: content for name, content in self.before.items() if name.startswith("neighbor")}
        assert neighbor
        assert neighbor.items() <= files(self.store).items()
        assert self.program("verify", "store/neighbor").returncode == 0
        if "mine.pt" in self.before:  # the old tensors or the new ones
            engine.load_activations("mine", store=self.store)

    def require_resumed(self) -> None:
        """The same command completes the capture and leaves nothing else; then undo it."""
        again = self.program(*self.command)
        if again.returncode == 5:  # killed after the tensors, or after everything, was saved
            assert "there is already a capture called mine" in again.stderr
            if not (self.store / "mine.json").exists():
                listed = " ".join(self.program("list", "--store", "store").stdout.split())
                assert "mine damaged: it has no record" in listed
                again = self.program(*self.command, "--force")
                assert again.returncode == 0, again.stderr
        else:
            assert again.returncode == 0, again.stderr
        assert self.program("verify", "--store", "store").returncode == 0
        saved = files(self.store)
        assert {name: saved[name] for name in self.whole} == self.whole
        assert saved.keys() == self.before.keys() | self.whole.keys() | {"mine.json"}, "leftovers"
        record = json.loads(saved["mine.json"])
        assert len(record["statistics"]) == 4
        for name in saved.keys() - self.before.keys():
            (self.store / name).unlink()
        for name, content in self.before.items():
            (self.store / name).write_bytes(content)
        if (self.store / "mine").exists():
            (self.store / "mine").rmdir()


def files(store: Path) -> dict[str, bytes]:
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def run_to(program: Program, command: tuple[str, ...], operation: int) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(sys.path)
    return program.python("-c", _KILLED_IN_SAVE, "store", str(operation), *command, PYTHONPATH=path)


@pytest.fixture(params=["new", "replaced", "shards"])
def target(request: pytest.FixtureRequest, layerscope: Program, tiny_folder: Path) -> Target:
    """A capture in memory, one that replaces another, and one in shards; next to a neighbor."""
    pairs = [{"positive": f"w5 w{20 + i}", "negative": f"w6 w{20 + i}"} for i in range(9)]
    (layerscope.folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    write_prompts(layerscope.folder / "many.txt", PROMPTS)
    how = ("capture", "--model", str(tiny_folder), "--quiet", "--output")
    source = ("--prompts", "many.txt") if request.param == "shards" else ("--pairs", "pairs.jsonl")
    force = ("--force",) if request.param == "replaced" else ()
    assert layerscope(*how, "store/neighbor", "--pairs", "pairs.jsonl").returncode == 0
    if force:
        assert layerscope(*how, "store/mine", "--prompt", "w5", "--prompt", "w6").returncode == 0
    before = files(layerscope.folder / "store")
    command = (*how, "store/mine", *source, *force)
    start = time.monotonic()
    uninterrupted = run_to(layerscope, command, 0)
    seconds = time.monotonic() - start
    assert uninterrupted.returncode == 0, uninterrupted.stderr
    saved = files(layerscope.folder / "store")
    whole = {name: content for name, content in saved.items() if name.startswith("mine") and name != "mine.json"}
    target = Target(layerscope, command, before, whole, seconds, int(uninterrupted.stderr.split()[-1]))
    assert target.operations >= 5
    if not force:
        assert layerscope("delete", "store/mine", "--yes").returncode == 0
    else:
        for name, content in before.items():
            (target.store / name).write_bytes(content)
    return target


@pytest.mark.parametrize("how", [Target.killed_at_random, Target.killed_in_save])
def test_after_ten_kills_nothing_is_lost_and_the_same_command_completes(
    target: Target, how: Callable[[Target, random.Random], bool]
) -> None:
    dice = random.Random(f"{how.__name__} {target.command[-1]}")  # noqa: S311 - moments, no secrets
    kills = 0
    while kills < KILLS:
        kills += how(target, dice)
        target.require_intact()
        target.require_resumed()
