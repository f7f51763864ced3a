"""Shards that replace a capture, killed before every operation that changes the store, in real processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

pytestmark = pytest.mark.slow

# Forks a process for every operation of a replacement and kills it there. Then the old capture or the new one must be
# whole, by value, and the same call must complete the new one. Prints how many kills left the old one and the new one.
_KILLS = """
import os, shutil, signal, sys
from collections import Counter
from pathlib import Path

import torch

import engine
from engine.errors import StoreError
from engine.store import resume

folder, kind = Path(sys.argv[1]), sys.argv[2]
store, prepared = folder / "store", folder / "prepared"
model, tokenizer, _ = engine.load_model_and_tokenizer(str(folder / "model"))
resume._SHARD_PROMPTS = 5
for name, first in (("old", 5), ("new", 6)):
    (folder / f"{name}.txt").write_text(chr(10).join(f"w{first} w{10 + i}" for i in range(20)))


def capture(which, target, **how):
    engine.capture_prompt_file(model, tokenizer, folder / f"{which}.txt", "mine", store=target, **how)


def states(target):
    data = engine.load_activations("mine", store=target)
    return data["prompt"], [data["activations"][layer] for layer in range(4)]


def same(one, other):
    return one[0] == other[0] and all(map(torch.equal, one[1], other[1]))


def forked(stop, force):
    done = []

    def count(event, arguments):
        changes = event in ("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir")
        if event == "open" and isinstance(arguments[0], str):
            changes = bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if changes and os.path.abspath(os.fspath(arguments[0])).startswith(f"{store}{os.sep}"):
            done.append(event)
            if len(done) == stop:
                os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        code = 1
        try:
            sys.addaudithook(count)
            capture("new", store, force=force)
            code = 0
        except StoreError as error:
            print(error, file=sys.stderr)
            code = 5 if "already a capture called mine" in str(error) else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


capture("new", folder / "expected")
new = states(folder / "expected")
if kind == "shards":
    capture("old", prepared)
    (prepared / "mine" / "notes.txt").write_text("notes")
else:
    texts = (folder / "old.txt").read_text().splitlines()
    data = engine.capture_activations(model, tokenizer, texts, positions="last")
    engine.save_activations(data, "mine", store=prepared)
old = states(prepared)
assert not same(old, new)

found, stop = Counter(), 0
while True:
    stop += 1
    shutil.rmtree(store, ignore_errors=True)
    shutil.copytree(prepared, store)
    ended = forked(stop, force=True)
    if ended == 0:
        break
    assert ended == -signal.SIGKILL, ended
    if stop % 2:  # several ways to open it first
        assert [entry.problem for entry in engine.list_captures(store)] == [""], stop
    left = states(store)
    kinds = [name for name, one in (("old", old), ("new", new)) if same(left, one)]
    assert len(kinds) == 1, stop
    found[kinds[0]] += 1
    assert engine.verify_capture("mine", store=store).status == "ok", stop
    again = forked(0, force=stop % 3 > 0)
    if again == 5:  # nothing had been started, or all was done
        assert stop % 3 == 0
        again = forked(0, force=True)
    assert again == 0, stop
    assert same(states(store), new), stop
    assert sorted(path.name for path in store.iterdir()) == ["mine", "mine.json"], stop
    assert len([*(store / "mine").iterdir()]) == 5 + (kind == "shards"), stop  # four shards, the plan, the notes
print(found["old"], found["new"])
"""


@pytest.mark.parametrize("kind", ["shards", "file"])
def test_a_kill_leaves_the_old_capture_or_the_new_one_and_the_same_call_completes(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, kind: str
) -> None:
    for part in (tiny_llama, tiny_tokenizer):
        part.save_pretrained(tmp_path / "model")
    run = subprocess.run(
        [sys.executable, "-c", _KILLS, str(tmp_path), kind],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    old, new = map(int, run.stdout.split())
    assert old >= 16  # the plan and four shards are created, written and renamed
    assert new >= 3
