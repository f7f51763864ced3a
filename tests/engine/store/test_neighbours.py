"""Captures of neighbours: made once, kept outside the store, safe from kills and from each other."""

import copy
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.capture import provenance
from engine.concepts.catalog import load_concept
from engine.errors import RequestError, StoreError
from engine.records.captures import Concept, ContrastData, Provenance
from engine.store import resume
from engine.store.neighbour_cache import neighbours_path
from engine.store.neighbours import (
    NEIGHBOURS,
    built_in_neighbours,
    capture_neighbours,
    missing_neighbours,
)
from tests.conftest import family_called
from tests.engine.cli.conftest import concept_text
from tests.families import build, with_other_positions
from tests.program import Program

Capture = Callable[..., dict[str, ContrastData]]


class Steps:
    """Steps that were reported."""

    def __init__(self) -> None:
        self.said: list[tuple[str, int, int]] = []

    def __call__(self, step: str, done: int, total: int) -> None:
        self.said.append((step, done, total))

    @property
    def passes(self) -> set[str]:
        """Neighbours whose prompts were run."""
        return {step.partition(":")[0] for step, done, _ in self.said if "running prompts" in step and done > 0}


def concepts_in(folder: Path) -> list[Concept]:
    folder.mkdir(exist_ok=True)
    for name in ("warmth", "calm"):
        (folder / f"{name}.toml").write_text(concept_text(name))
    return [load_concept(folder / f"{name}.toml") for name in ("warmth", "calm")]


@pytest.fixture
def concepts(tmp_path: Path) -> list[Concept]:
    """Two concepts in the words of the tiny tokenizer."""
    return concepts_in(tmp_path / "concepts")


@pytest.fixture
def like(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, concepts: list[Concept]) -> Provenance:
    """Provenance of a contrast on the tiny model."""
    return made_like(tiny_llama, tiny_tokenizer, concepts)


def made_like(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, concepts: list[Concept], positions: str = "last"
) -> Provenance:
    data = engine.capture_from_concept(model, tokenizer, concepts[0], max_samples=4, layers=[1], positions=positions)
    return data["provenance"]


@pytest.fixture
def capture(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    concepts: list[Concept],
    like: Provenance,
    tmp_path: Path,
) -> Capture:
    """Capture the neighbours of that contrast; arguments replace the defaults."""

    def run(**changes: Any) -> dict[str, ContrastData]:
        model, tokenizer = changes.pop("model", tiny_llama), changes.pop("tokenizer", tiny_tokenizer)
        options: dict[str, Any] = {"concepts": concepts, "folder": tmp_path / "kept"} | changes
        return capture_neighbours(model, tokenizer, options.pop("like", like), **options)

    return run


def states(found: dict[str, ContrastData]) -> dict[str, torch.Tensor]:
    """All states of each neighbour, `(layers, prompts, hidden)`."""
    return {
        name: torch.stack(
            [
                torch.cat([prompt["activations"][layer][:, -1] for prompt in (*data["positive"], *data["negative"])])
                for layer in data["layers"]
            ]
        )
        for name, data in found.items()
    }


def assert_same(one: dict[str, ContrastData], other: dict[str, ContrastData]) -> None:
    first, second = states(one), states(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_states_are_those_of_a_capture(
    capture: Capture, tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, concepts: list[Concept]
) -> None:
    found = capture()
    assert list(found) == ["warmth", "calm"]
    direct = {
        concept.name: engine.capture_from_concept(tiny_llama, tiny_tokenizer, concept, positions="last")
        for concept in concepts
    }
    assert_same(found, direct)
    assert found["calm"]["factors"] == direct["calm"]["factors"]


def test_the_second_use_makes_no_pass(capture: Capture, tmp_path: Path) -> None:
    first, second = Steps(), Steps()
    found = capture(steps=first)
    assert first.passes == {"warmth", "calm"}
    locks = [*(tmp_path / "kept").glob(".*.lock")]
    assert len(locks) == 2
    for lock in locks:
        lock.unlink()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*")}
    assert {path.suffix for path in before} == {"", ".json", ".safetensors"}
    assert_same(capture(steps=second), found)
    assert not second.said
    assert not [*(tmp_path / "kept").glob(".*.lock")]  # nothing is opened for writing: the folder may be read-only
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*")} == before


def test_another_site_position_or_model_is_captured_again(
    capture: Capture, like: Provenance, tiny_tokenizer: PreTrainedTokenizerFast, concepts: list[Concept], tmp_path: Path
) -> None:
    capture()
    other = build(family_called("llama"))
    with torch.no_grad():
        other.model.embed_tokens.weight.mul_(1.5)
    makers: list[dict[str, Any]] = [
        {"like": like | {"positions": "mean"}},
        {"like": like | {"site": "mlp_out"}},
        {"model": other, "like": made_like(other, tiny_tokenizer, concepts)},
    ]
    for changes in makers:
        steps = Steps()
        capture(steps=steps, **changes)
        assert steps.passes == {"warmth", "calm"}
    assert len([*(tmp_path / "kept").glob("*.json")]) == 8


def in_a_chat(_model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "{% for message in messages %}w3 {{ message['content'] }} w4{% endfor %}"


def with_eager_attention(model: PreTrainedModel, _tokenizer: PreTrainedTokenizerFast) -> None:
    model.set_attn_implementation("eager")


def with_more_tokens(_model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """As some tokenizers do to mark the beginning."""
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="w9 $A", special_tokens=[("w9", 9)])


@pytest.mark.parametrize("change", [in_a_chat, with_eager_attention, with_more_tokens])
def test_what_determines_the_states_is_part_of_the_name(
    capture: Capture,
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    concepts: list[Concept],
    change: Callable[[PreTrainedModel, PreTrainedTokenizerFast], None],
) -> None:
    capture()
    tokenizer = copy.deepcopy(tiny_tokenizer)
    change(tiny_llama, tokenizer)
    assert captured_again(capture, made_like(tiny_llama, tokenizer, concepts), tokenizer=tokenizer)


def test_another_configuration_is_captured_again(
    capture: Capture,
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    concepts: list[Concept],
) -> None:
    capture()
    other = with_other_positions(tiny_llama)
    assert captured_again(capture, made_like(other, tiny_tokenizer, concepts), model=other)


def test_autocast_is_captured_again(
    capture: Capture, tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, concepts: list[Concept]
) -> None:
    capture()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert captured_again(capture, made_like(tiny_llama, tiny_tokenizer, concepts))


@pytest.mark.parametrize("package", ["layerscope", "transformers"])
def test_another_version_is_captured_again(
    capture: Capture,
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    concepts: list[Concept],
    monkeypatch: pytest.MonkeyPatch,
    package: str,
) -> None:
    capture()
    versions = provenance.library_versions() | {package: "99.0"}
    monkeypatch.setattr(provenance, "library_versions", lambda: versions)
    assert captured_again(capture, made_like(tiny_llama, tiny_tokenizer, concepts))


def captured_again(capture: Capture, like: Provenance, **changes: Any) -> bool:
    """Whether both neighbours are captured for such a contrast, and not a second time."""
    first, second = Steps(), Steps()
    capture(like=like, steps=first, **changes)
    capture(like=like, steps=second, **changes)
    return first.passes == {"warmth", "calm"} and not second.passes


def test_a_changed_concept_is_captured_again_and_the_others_are_not(capture: Capture, tmp_path: Path) -> None:
    capture()
    path = tmp_path / "concepts" / "warmth.toml"
    path.write_text(path.read_text().replace("w20 w21", "w24 w25"))
    steps = Steps()
    capture(steps=steps, concepts=[load_concept(path), load_concept(path.with_name("calm.toml"))])
    assert steps.passes == {"warmth"}


def test_all_positions_are_compared_at_the_last_token(capture: Capture, like: Provenance) -> None:
    found, steps = capture(), Steps()
    assert_same(capture(like=like | {"positions": "all"}, steps=steps), found)
    assert not steps.said


def test_an_interrupted_capture_is_resumed(capture: Capture) -> None:
    interrupted_at_ranking(capture)
    steps = Steps()
    resumed = capture(steps=steps)
    assert ("warmth: ranking layers", 0, 4) in steps.said
    assert [done for step, done, _ in steps.said if step == "warmth: running prompts"] == [0, 48]  # its shard was saved
    assert_same(resumed, capture())


def interrupted_at_ranking(capture: Capture) -> None:
    """Save the shards of the first neighbour, but not its record."""

    def stop(step: str, _done: int, _total: int) -> None:
        if step == "warmth: ranking layers":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture(steps=stop)


def test_an_error_keeps_the_saved_shards(capture: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only other settings make them useless, not a full disk."""
    interrupted_at_ranking(capture)
    (shard,) = (tmp_path / "kept").glob("warmth-*/*.safetensors")
    saved = shard.stat().st_ino, shard.stat().st_mtime_ns

    def full(*_: Any, **__: Any) -> None:
        raise StoreError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(resume, "record_shards", full)
        with pytest.raises(StoreError, match="no space left"):
            capture()
    assert (shard.stat().st_ino, shard.stat().st_mtime_ns) == saved
    capture()
    assert (shard.stat().st_ino, shard.stat().st_mtime_ns) == saved


def test_shards_from_another_device_are_replaced(capture: Capture, tmp_path: Path) -> None:
    interrupted_at_ranking(capture)
    (path,) = (tmp_path / "kept").glob("warmth-*/plan.json")
    plan = json.loads(path.read_text())
    plan["provenance"]["device"] = "cuda:0"
    path.write_text(json.dumps(plan))
    found = capture()
    assert found["warmth"]["provenance"]["device"] == "cpu"


def test_the_missing_are_named(
    capture: Capture,
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    concepts: list[Concept],
    like: Provenance,
    tmp_path: Path,
) -> None:
    def missing(like: Provenance) -> list[str]:
        found = missing_neighbours(tiny_llama, tiny_tokenizer, like, concepts=concepts, folder=tmp_path / "kept")
        return [concept.name for concept in found]

    assert missing(like) == ["warmth", "calm"]
    assert not (tmp_path / "kept").exists()
    capture(concepts=concepts[1:])
    assert missing(like) == ["warmth"]
    interrupted_at_ranking(capture)
    assert missing(like) == ["warmth"]
    capture()
    assert missing(like) == []
    assert missing(like | {"site": "mlp_out"}) == ["warmth", "calm"]
    with pytest.raises(RequestError, match="not captured at positions 2:10"):
        missing(like | {"positions": "2:10"})


def test_a_damaged_capture_is_made_again(capture: Capture, tmp_path: Path) -> None:
    found = {name: tensor.clone() for name, tensor in states(capture()).items()}
    (shard,) = (tmp_path / "kept").glob("warmth-*/*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-200] ^= 1
    shard.write_bytes(content)
    steps = Steps()
    again = states(capture(steps=steps))
    assert steps.passes == {"warmth"}
    assert torch.equal(again["warmth"], found["warmth"])


def test_threads_capture_a_neighbour_once(capture: Capture, tmp_path: Path) -> None:
    steps = [Steps(), Steps(), Steps()]
    models = [build(family_called("llama")) for _ in steps]
    with ThreadPoolExecutor(len(steps)) as pool:
        runs = [pool.submit(capture, steps=own, model=model) for own, model in zip(steps, models, strict=True)]
        found = [run.result() for run in runs]
    assert sorted(name for own in steps for name in own.passes) == ["calm", "warmth"]
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])
    assert len([*(tmp_path / "kept").glob("*.json")]) == 2


def test_a_model_that_differs_from_its_checkpoint_is_refused(capture: Capture, tiny_llama: PreTrainedModel) -> None:
    tiny_llama.model.layers[0].register_forward_hook(lambda *_: None)
    with pytest.raises(RequestError, match="differs from its checkpoint"):
        capture()


def test_another_model_than_that_of_the_contrast_is_refused(capture: Capture, like: Provenance) -> None:
    with pytest.raises(RequestError, match="weights was"):
        capture(like=like | {"weights": "0" * 64})
    with pytest.raises(RequestError, match="model was other"):
        capture(like=like | {"model": "other"})


def test_several_tokens_in_a_span_are_refused(capture: Capture, like: Provenance) -> None:
    with pytest.raises(RequestError, match="not captured at positions 2:10"):
        capture(like=like | {"positions": "2:10"})


def test_the_built_in_neighbours_are_kept_in_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert {concept.name for concept in built_in_neighbours()} <= {*NEIGHBOURS}
    assert {"formality", "verbosity"} <= {concept.name for concept in built_in_neighbours()}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform.startswith("linux"):
        assert neighbours_path() == tmp_path / "layerscope" / "neighbours"


_CHILD = """
import json, os, signal, sys
from pathlib import Path
import engine
from engine.store.neighbours import capture_neighbours

folder, deadly = Path(sys.argv[1]), sys.argv[2]
model, tokenizer, _ = engine.load_model_and_tokenizer(str(folder / "tiny"), device="cpu")
concepts = [engine.load_concept(folder / "concepts" / f"{name}.toml") for name in ("warmth", "calm")]
data = engine.capture_from_concept(model, tokenizer, concepts[0], max_samples=4, layers=[1], positions="last")
ran = set()

def note(step, done, total):
    if step == deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    if "running prompts" in step and 0 < done:
        ran.add(step.partition(":")[0])

found = capture_neighbours(
    model, tokenizer, data["provenance"], concepts=concepts, folder=folder / "kept", steps=note
)
sums = {name: float(sum(one["activations"][3].double().sum() for one in d["positive"])) for name, d in found.items()}
print(json.dumps({"ran": sorted(ran), "sums": sums}))
"""


@pytest.mark.slow
def test_kills_and_two_processes_at_once_leave_one_whole_capture(
    tmp_path: Path, tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    tiny_llama.save_pretrained(tmp_path / "tiny")
    tiny_tokenizer.save_pretrained(tmp_path / "tiny")
    concepts_in(tmp_path / "concepts")
    program = Program(tmp_path)
    for deadly in ("warmth: running prompts", "warmth: ranking layers", "calm: looking for confounds"):
        assert program.python("-c", _CHILD, str(tmp_path), deadly).returncode == -signal.SIGKILL
    whole = tmp_path / "whole"
    whole.mkdir()
    for name in ("tiny", "concepts"):
        (whole / name).symlink_to(tmp_path / name)
    expected = json.loads(program.python("-c", _CHILD, str(whole), "").stdout)["sums"]
    command = [sys.executable, "-c", _CHILD, str(tmp_path), ""]
    two = [
        subprocess.Popen(command, env=program.environment(), stdout=subprocess.PIPE, text=True, cwd=tmp_path)
        for _ in range(2)
    ]
    said = [json.loads(process.communicate(timeout=300)[0]) for process in two]
    assert [one["sums"] for one in said] == [expected, expected]
    assert len([*(tmp_path / "kept").glob("*.json")]) == 2
