"""Capturing a file of prompts as shards: content, reading, resuming and errors."""

import json
import time
import weakref
from pathlib import Path
from threading import Event, get_ident
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.capture import prepare
from engine.capture.prepare import HeldPrompts, PreparedCapture
from engine.capture.run import StackedStates, capture_stacked
from engine.capture.sources import Item
from engine.errors import CaptureError, LayerscopeError, RequestError, StoreError
from engine.records.captures import ContrastData
from engine.store import resume, shard_run
from engine.store.catalog import list_captures, show_capture
from engine.store.delete import delete_capture
from engine.store.plan import read_plan
from engine.store.plan_changes import plan_changes
from engine.store.shards import Shard, write_shard
from engine.store.summaries import stamp_store, summarise_capture

COUNT = 23
TEXTS = [" ".join(f"w{3 + (7 * i + 5 * j) % 100}" for j in range(2 + i % 6)) for i in range(COUNT)]


@pytest.fixture(params=[2**20, 20], ids=["held", "tokenized again"])
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A file of prompts, held in memory or too large for that, and several shards, of five prompts each."""
    monkeypatch.setattr(prepare, "_HELD_TOKENS", request.param)
    monkeypatch.setattr(resume, "_SHARD_PROMPTS", 5)
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return path


@pytest.fixture
def capture(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, prompts: Path) -> Any:
    def run(name: str = "mine", file: Path = prompts, model: PreTrainedModel = tiny_llama, **how: Any) -> list[Shard]:
        store = file.parent / "store"
        engine.capture_prompt_file(model, tiny_tokenizer, file, name, store=store, **how)
        return engine.open_shards(name, store=store)

    return run


@pytest.mark.parametrize("positions", ["all", "last", "mean", "0", "0:2"])
def test_states_are_those_of_a_plain_forward(
    positions: str, capture: Any, tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    shards: list[Shard] = capture(positions=positions, layers=[0, 2])
    assert [shard.start for shard in shards] == [0, 5, 10, 15, 20]
    assert [text for shard in shards for text in shard.prompts] == TEXTS
    ids = [one for shard in shards for one in shard.input_ids]
    for layer in (0, 2):
        states = [rows for shard in shards for rows in torch.split(shard.states(layer), shard.kept)]
        for text, tokens, rows in zip(TEXTS, ids, states, strict=True):
            assert tokens.tolist() == tiny_tokenizer(text)["input_ids"]
            with torch.no_grad():
                plain = tiny_llama(tokens[None].long(), output_hidden_states=True).hidden_states[layer + 1][0]
            kept = {"all": plain, "last": plain[-1:], "mean": plain[1:].mean(0, keepdim=True), "0": plain[:1]}
            torch.testing.assert_close(rows, kept.get(positions, plain[:2]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("positions", ["all", "last", "0:2"])
def test_the_record_is_small_and_its_statistics_are_those_of_all_prompts(
    positions: str, capture: Any, prompts: Path, tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    capture(positions=positions)
    store = prompts.parent / "store"
    record = show_capture("mine", store=store)
    together = engine.capture_activations(tiny_llama, tiny_tokenizer, TEXTS, positions=positions)
    expected = engine.compute_activation_stats(together)
    for row in record["statistics"]:
        for key in ("mean", "std", "norm"):
            assert row[key] == pytest.approx(expected[row["layer"]][key], rel=1e-4)
    assert (record["kind"], record.get("num_prompts"), record["prompts"]) == ("prompt", COUNT, TEXTS[:20])
    assert record["data"]["name"] == "mine/"
    assert record["data"]["bytes"] == sum(path.stat().st_size for path in (store / "mine").glob("*.safetensors"))
    assert record["provenance"]
    assert record["provenance"]["positions"] == positions


def test_jsonl_and_csv_give_the_same_capture_as_text(capture: Any, prompts: Path) -> None:
    jsonl, table = prompts.with_suffix(".jsonl"), prompts.with_suffix(".csv")
    jsonl.write_text("\n".join(json.dumps({"id": i, "prompt": text}) for i, text in enumerate(TEXTS)))
    table.write_text("prompt,id\n" + "".join(f"{text},{i}\n" for i, text in enumerate(TEXTS)))
    capture("a")
    for name, file in (("b", jsonl), ("c", table)):
        capture(name, file)
        for path in sorted((prompts.parent / "store" / "a").glob("*.safetensors")):
            assert path.read_bytes() == (prompts.parent / "store" / name / path.name).read_bytes()


def test_bfloat16_on_disk_is_the_rounded_states(capture: Any) -> None:
    whole, half = capture("whole"), capture("half", store_dtype="bfloat16")
    for one, other in zip(whole, half, strict=True):
        assert other.states(1).dtype == torch.bfloat16
        assert torch.equal(other.states(1), one.states(1).bfloat16())


def test_a_resumed_capture_equals_an_uninterrupted_one(capture: Any, prompts: Path) -> None:
    class StopError(Exception):
        pass

    def stop(done: int, _total: int) -> None:
        if done > 10:
            raise StopError

    capture("whole")
    store = prompts.parent / "store"
    with pytest.raises(StopError):
        capture("mine", progress=stop)
    assert sorted(path.name for path in (store / "mine").iterdir()) == [
        *("000000000000.safetensors", "000000000005.safetensors", "plan.json"),
    ]
    entry = next(entry for entry in list_captures(store) if entry.name == "mine")
    assert entry.record is None
    assert "unfinished: 2 shards saved so far" in entry.problem
    assert summarise_capture("mine", store).complaint.startswith("mine is unfinished: 2 shards saved so far")
    with pytest.raises(StoreError) as unfinished:
        engine.open_shards("mine", store=store)
    assert str(unfinished.value) == (
        "the capture 'mine' cannot be used: unfinished: 2 shards saved so far."
        " Next: run the same capture again under this name to resume from the saved shards."
    )
    first = store / "mine" / "000000000000.safetensors"
    before = first.stat().st_mtime_ns
    capture("mine")
    assert first.stat().st_mtime_ns == before
    for path in (store / "whole").glob("*.safetensors"):
        assert path.read_bytes() == (store / "mine" / path.name).read_bytes()
    records = [show_capture(name, store=store) for name in ("whole", "mine")]
    assert records[0]["statistics"] == records[1]["statistics"]


def test_resuming_with_other_settings_is_refused_with_the_difference(
    capture: Any, prompts: Path, tiny_llama: PreTrainedModel
) -> None:
    capture("mine", positions="last", layers=[0, 1])
    store = prompts.parent / "store"
    (store / "mine.json").unlink()
    (store / "mine" / "000000000010.safetensors").unlink()
    other = prompts.with_name("other.txt")
    other.write_text("\n".join([*TEXTS[:-1], "w9 w9"]))
    how: dict[str, Any] = {"positions": "last", "layers": [0, 1]}
    for changed, said in (
        ({"file": other}, "the texts of the prompts changed"),
        ({"layers": [0, 2]}, r"layers was \[0, 1\], is now \[0, 2\]"),
        ({"positions": "-2"}, "positions was last, is now -2"),
        ({"store_dtype": "bfloat16"}, "store dtype was as captured, is now bfloat16"),
        ({"batch_size": 1}, "batch size was none, is now 1"),
    ):
        with pytest.raises(StoreError, match=said):
            capture("mine", **how | changed)
    with torch.no_grad():
        next(tiny_llama.parameters()).mul_(1.01)
    with pytest.raises(StoreError, match="the weights of the model changed"):
        capture("mine", **how)
    assert not (store / "mine" / "000000000010.safetensors").exists()
    assert len(capture("mine", **how, force=True)) == 5


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [("cuda:0", "cuda:3", []), ("cuda", "cuda:0", []), ("cpu", "cuda:0", ["device was cpu, is now cuda:0"])],
)
def test_a_capture_is_resumed_on_any_device_of_the_same_kind(
    capture: Any, prompts: Path, before: str, after: str, said: list[str]
) -> None:
    """Each process of a capture has its own GPU."""
    capture("mine")
    plans = [read_plan(prompts.parent / "store" / "mine" / "plan.json") for _ in range(2)]
    for plan, device in zip(plans, (before, after), strict=True):
        plan["provenance"]["device"] = device
    assert plan_changes(*plans) == said


def test_taken_names_are_refused_or_replaced_completely(
    capture: Any, prompts: Path, contrast_data: ContrastData
) -> None:
    store = prompts.parent / "store"
    capture("mine")
    with pytest.raises(StoreError, match="already a capture called mine"):
        capture("mine")
    with pytest.raises(StoreError, match="already a capture called mine"):
        engine.save_activations(contrast_data, "mine", store=store)
    engine.save_activations(contrast_data, "mine", store=store, force=True)
    assert sorted(path.name for path in store.iterdir()) == ["mine.json", "mine.pt"]
    with pytest.raises(RequestError, match="is saved as one file"):
        engine.open_shards("mine", store=store)
    capture("mine", force=True)
    assert sorted(path.name for path in store.iterdir()) == ["mine", "mine.json"]


def test_a_foreign_folder_is_left_alone(capture: Any, prompts: Path) -> None:
    folder = prompts.parent / "store" / "mine"
    folder.mkdir(parents=True)
    (folder / "notes").write_text("mine")
    for plan in ("", "{}"):
        if plan:
            (folder / "plan.json").write_text(plan)
        for force in (False, True):
            with pytest.raises(StoreError, match="holds files that are not shards"):
                capture("mine", force=force)
    assert sorted(path.name for path in folder.iterdir()) == ["notes", "plan.json"]


def test_a_file_in_place_of_the_folder_is_left_alone(capture: Any, prompts: Path) -> None:
    file = prompts.parent / "store" / "mine"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("precious")
    for force in (False, True):
        with pytest.raises(StoreError, match="mine is a file, and shards need a folder of that name"):
            capture("mine", force=force)
    assert file.read_text() == "precious"


def test_it_is_listed_like_any_other_and_deleted_with_its_folder(capture: Any, prompts: Path) -> None:
    store = prompts.parent / "store"
    capture("mine", layers=[1, 3])
    capture("other")
    assert {stamp.name for stamp in stamp_store(store)} == {"mine", "other"}
    summary = summarise_capture("mine", store)
    assert (summary.layers, summary.num_layers, summary.problem) == (2, 4, "")
    delete_capture("mine", store=store)
    assert sorted(path.name for path in store.iterdir()) == ["other", "other.json"]


def test_a_missing_or_damaged_shard_is_detected(capture: Any, prompts: Path) -> None:
    shards: list[Shard] = capture("mine")
    store = prompts.parent / "store"
    with pytest.raises(RequestError, match="layer 9 was not captured"):
        shards[0].states(9)
    shards[1].path.write_bytes(b"x" * shards[1].path.stat().st_size)
    with pytest.raises(StoreError, match="is damaged"):
        shards[1].states(0)
    shards[1].path.unlink()
    with pytest.raises(StoreError, match="its shards have"):
        engine.open_shards("mine", store=store)


def test_an_invalid_prompt_is_named_before_anything_is_run(capture: Any, prompts: Path) -> None:
    for last, error, said in (
        ("w5 " * 65, CaptureError, r"prompts\.txt, line 24 .*has 65 tokens"),
        ("w5", RequestError, r"prompts\.txt, line 24 .*positions '1' do not exist"),
    ):
        prompts.write_text("\n".join([*TEXTS, last]))
        with pytest.raises(error, match=said):
            capture("mine", positions="1")
    assert not (prompts.parent / "store").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "\n \n", "contains no prompts"),
        ("a.jsonl", '{"prompt": "w5"', "line 1 is not valid JSON"),
        ("a.jsonl", '{"text": "w5"}', "line 1: prompt is missing"),
        ("a.jsonl", '["w5"]', "line 1 is not a JSON object"),
        ("a.jsonl", '{"prompt": "\\ud800"}', "contains a lone surrogate"),
        ("a.csv", "text\nw5\n", "no column 'prompt'"),
        ("a.csv", "prompt,more\n,w5\n", "line 2: the prompt is empty"),
        ("a.parquet", "w5", "is not a supported file type"),
    ],
)
def test_a_file_without_prompts_is_refused(name: str, content: str, said: str, capture: Any, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(LayerscopeError, match=said):
        capture("mine", tmp_path / name)


def test_a_file_that_changes_during_the_capture_is_noticed(capture: Any, prompts: Path) -> None:
    def change(done: int, _total: int) -> None:
        if done >= 5:
            prompts.write_text("\n".join(reversed(TEXTS)) + "\n")

    with pytest.raises(RequestError, match=r"prompts\.txt was changed during the capture"):
        capture(progress=change)


@pytest.mark.parametrize("prompts", [20], indirect=True)
def test_prompts_of_the_next_shard_are_tokenized_while_one_is_run(
    capture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, starts = PreparedCapture.tokenized, range(0, COUNT, 5)
    done = {start: Event() for start in (*starts, 25)}
    done[25].set()  # there is no shard after the last
    tokenized: list[int] = []
    threads: set[int] = set()
    run = iter(starts)

    def watched_read(prepared: PreparedCapture, items: list[Item], start: int = 0) -> HeldPrompts:
        threads.add(get_ident())
        held = read(prepared, items, start)
        tokenized.append(start)
        done[start].set()
        return held

    def watched_run(*args: Any, **options: Any) -> StackedStates:
        start = next(run)
        assert done[start + 5].wait(30)
        assert tokenized == [*range(0, min(start + 10, COUNT), 5)]  # one shard ahead, no more
        return capture_stacked(*args, **options)

    monkeypatch.setattr(PreparedCapture, "tokenized", watched_read)
    monkeypatch.setattr(shard_run, "capture_stacked", watched_run)
    capture("mine")
    assert len(threads) == 1
    assert get_ident() not in threads


def test_the_states_of_at_most_two_shards_are_in_memory(capture: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[StackedStates]] = []
    most = 0

    def watched(*args: Any, **options: Any) -> StackedStates:
        nonlocal most
        states = capture_stacked(*args, **options)
        alive.append(weakref.ref(states))
        most = max(most, sum(one() is not None for one in alive))
        return states

    def slow_write(*args: Any) -> None:
        time.sleep(0.05)
        write_shard(*args)

    monkeypatch.setattr(shard_run, "capture_stacked", watched)
    monkeypatch.setattr(shard_run, "write_shard", slow_write)
    capture("mine")
    assert len(alive) == 5
    assert most == 2


def test_a_disk_that_fills_up_keeps_the_shards_before(
    capture: Any, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(shard: Shard, content: list[bytes | memoryview]) -> None:
        if shard.start == 10:
            raise StoreError("the disk is full")
        write_shard(shard, content)

    with monkeypatch.context() as full:
        full.setattr(shard_run, "write_shard", fill)
        with pytest.raises(StoreError, match="the disk is full"):
            capture("mine")
    saved = sorted(path.stem for path in (prompts.parent / "store" / "mine").glob("*.safetensors"))
    assert saved == ["000000000000", "000000000005"]
    assert len(capture("mine")) == 5


def test_passes_stop_after_the_last_layer(capture: Any, prompts: Path) -> None:
    capture(layers=[1])
    provenance = show_capture("mine", store=prompts.parent / "store")["provenance"]
    assert provenance is not None
    assert provenance["mode"] == "hooks"
