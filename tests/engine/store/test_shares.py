"""Several processes share the shards of a capture evenly, and write what one process writes."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Barrier, get_ident
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.capture import budget
from engine.errors import StoreError
from engine.runtime import ALONE, Item, Processes
from engine.store import resume, shard_run
from engine.store.shards import Shard
from engine.store.shares import hold_share, read_shares
from engine.store.write import held_file
from tests.conftest import framework_hook

TEXTS = [" ".join(f"w{3 + (7 * i + 5 * j) % 100}" for j in range(2 + i % 6)) for i in range(90)]


@dataclass(frozen=True)
class Threads(Processes):
    """Threads in place of processes."""

    barrier: Barrier | None = None
    items: dict[int, Any] = field(default_factory=dict)

    def wait(self) -> None:
        assert self.barrier is not None
        self.barrier.wait(60)

    def gather(self, item: Item) -> list[Item]:
        self.items[self.rank] = item
        self.wait()
        found = [self.items[rank] for rank in range(self.count)]
        self.wait()
        return found


def threads_for(count: int) -> list[Threads]:
    barrier, items = Barrier(count), dict[int, Any]()
    return [Threads(rank, count, rank, barrier, items) for rank in range(count)]


@pytest.fixture
def capture(
    tmp_path: Path,
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """Capture prompts in shards of thirty and batches of sixteen tokens; return the files by name."""
    monkeypatch.setattr(resume, "_SHARD_PROMPTS", 30)
    monkeypatch.setitem(budget._RUN_WELL, "cpu", 16)
    (tmp_path / "prompts.txt").write_text("\n".join(TEXTS))
    store = tmp_path / "store"

    def one(name: str, processes: Processes, how: dict[str, Any]) -> None:
        try:
            engine.capture_prompt_file(
                tiny_llama, tiny_tokenizer, tmp_path / "prompts.txt", name, store=store, processes=processes, **how
            )
        except BaseException:
            if isinstance(processes, Threads) and processes.barrier is not None:
                processes.barrier.abort()  # as a launcher ends all processes when one ends
            raise

    def run(name: str, count: int, **how: Any) -> dict[str, bytes]:
        everyone = threads_for(count) if count > 1 else [ALONE]
        with ThreadPoolExecutor(count) as threads:
            for done in [threads.submit(one, name, processes, how) for processes in everyone]:
                done.result()
        return {path.name: path.read_bytes() for path in (store / name).iterdir()}

    return run


@pytest.mark.parametrize("count", [2, 4, 5])
@pytest.mark.parametrize("how", [{"positions": "last"}, {"positions": "mean", "store_dtype": "bfloat16"}, {}])
def test_any_number_of_processes_writes_the_same_files(count: int, how: dict[str, Any], capture: Any) -> None:
    assert capture(f"shared{count}", count, **how) == capture("alone", 1, **how)


@pytest.mark.parametrize("count", [2, 4])
def test_the_processes_run_equally_many_tokens(count: int, capture: Any, tiny_llama: PreTrainedModel) -> None:
    ran: Counter[int] = Counter()
    tiny_llama.get_submodule("model.layers.0").register_forward_hook(
        framework_hook(lambda _module, args, _output: ran.update({get_ident(): args[0].shape[0] * args[0].shape[1]}))
    )
    capture("checked", count)  # runs the load check
    before = Counter(ran)
    capture("mine", count)
    shares = sorted((ran - before).values())
    assert len(shares) == count
    assert shares[-1] - shares[0] <= 3 * 16  # at most one batch for each shared shard


def test_a_resumed_capture_shares_only_what_is_missing(capture: Any, tmp_path: Path) -> None:
    whole = capture("mine", 1)
    store = tmp_path / "store"
    (store / "mine.json").unlink()
    lost = sorted(name for name in whole if name.startswith("0"))[1]
    (store / "mine" / lost).unlink()
    kept = {path.name: path.stat().st_mtime_ns for path in (store / "mine").iterdir()}
    (store / "mine" / f".{lost[:12]}.share-1.0123abcd.unfinished").write_bytes(b"left by a killed run")
    assert capture("mine", 3) == whole
    for name, time in kept.items():
        assert (store / "mine" / name).stat().st_mtime_ns == time


def test_a_process_that_fails_leaves_no_share(capture: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: Any) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(shard_run, "stack_states", fail)
    with pytest.raises(StoreError, match="the disk is full"):
        capture("mine", 2)
    names = sorted(path.name for path in (tmp_path / "store" / "mine").iterdir())
    assert names[-1] == "plan.json"
    assert all(name.startswith("0") for name in names[:-1])


def test_a_missing_share_is_an_error(tmp_path: Path) -> None:
    shard = Shard(tmp_path / "mine" / "000000000000.safetensors", 0, [1])
    shard.path.parent.mkdir()
    with (
        hold_share(shard, [], Processes(1, 2)),
        pytest.raises(StoreError, match="0 files hold the share of process 0"),
    ):
        list(read_shares(shard, Processes(0, 2)))
    with held_file(shard.path.with_name("000000000000.share-0"), b"damaged") as path, pytest.raises(StoreError):
        assert path.name.endswith(".unfinished")
        list(read_shares(shard, Processes(0, 1)))
    assert list(shard.path.parent.iterdir()) == []
