"""Compiled blocks give the same states, from one graph for all blocks, and only in the thread that captures."""

import logging
import pickle
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from io import StringIO
from pathlib import Path
from shutil import which
from threading import Thread
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.capture import budget, prepare, reading, run_settings
from engine.errors import CaptureError, RequestError, StoreError
from engine.models import attention, compiled
from engine.models.alterations import take_snapshot
from engine.models.compiled import compiled_blocks, why_not_compiled
from engine.models.structure import Blocks, find_blocks
from engine.records.captures import ActivationData
from engine.runtime import Progress
from engine.store import resume
from tests.conftest import family_called
from tests.families import build

START = " ".join(f"w{n}" for n in range(20, 36))
PROMPTS = [f"{START} w{40 + n} w{60 + n % 7} w{80 + n % 3}" for n in range(30)]
TOKENS = 128  # of a row; the distinct tokens of these prompts fill more than half of one


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounterWithBackend]:
    """Count graphs; without code generation, which takes long on a CPU."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    monkeypatch.setitem(budget._RUN_WELL, "cpu", TOKENS)
    yield counter
    torch._dynamo.reset()


def capture(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, **how: Any) -> ActivationData:
    return engine.capture_activations(model, tokenizer, PROMPTS, positions="last", use_hooks=True, **how)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "mixtral"])
def test_states_are_the_same_and_blocks_share_a_graph(
    name: str, tiny_tokenizer: PreTrainedTokenizerFast, graphs: CompileCounterWithBackend
) -> None:
    model = build(family_called(name))
    expected = capture(model, tiny_tokenizer)
    assert "compiled" not in expected["provenance"]
    assert graphs.frame_count == 0
    before = take_snapshot(model)
    found = capture(model, tiny_tokenizer, compiled=True)
    assert found["provenance"]["compiled"] == "on"
    assert take_snapshot(model) == before
    for layer, states in expected["activations"].items():
        torch.testing.assert_close(found["activations"][layer], states, rtol=1e-4, atol=1e-5)
    made = graphs.frame_count
    if name != "mixtral":  # which breaks graphs where it routes tokens
        assert 0 < made < len(find_blocks(model).blocks)
    capture(model, tiny_tokenizer, compiled=True)
    assert graphs.frame_count == made


def test_only_the_thread_that_captures_runs_compiled_code(
    tiny_llama: PreTrainedModel, graphs: CompileCounterWithBackend
) -> None:
    blocks, ids = find_blocks(tiny_llama), torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        expected = tiny_llama(ids).logits
        with compiled_blocks(blocks, wanted=True):
            found: list[torch.Tensor] = []
            other = Thread(target=lambda: found.append(torch.no_grad()(tiny_llama)(ids).logits))
            other.start()
            other.join()
            assert graphs.frame_count == 0
            tiny_llama(ids)
            assert graphs.frame_count > 0
    assert torch.equal(found[0], expected)
    assert not any("forward" in vars(block) for block in blocks.blocks)


def test_a_compiler_that_fails_is_not_used(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_graph: object) -> None:
        raise RuntimeError("no compiler was found")

    torch._dynamo.reset()
    monkeypatch.setitem(budget._RUN_WELL, "cpu", TOKENS)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    expected = capture(tiny_llama, tiny_tokenizer)
    with caplog.at_level(logging.INFO, "engine"):
        found = capture(tiny_llama, tiny_tokenizer, compiled=True)
    torch._dynamo.reset()
    assert "no compiler was found" in found["provenance"]["compiled"]
    assert "blocks are not compiled: " in caplog.text
    for layer, states in expected["activations"].items():
        assert torch.equal(found["activations"][layer], states)


@pytest.fixture
def shown() -> Iterator[StringIO]:
    """What PyTorch's compiler logs."""
    text = StringIO()
    handler = logging.StreamHandler(text)
    logging.getLogger("torch._inductor").addHandler(handler)
    yield text
    logging.getLogger("torch._inductor").removeHandler(handler)


def test_a_warning_of_the_compiler_is_one_line(
    tiny_llama: PreTrainedModel, shown: StringIO, caplog: pytest.LogCaptureFixture
) -> None:
    def warn() -> None:
        try:
            pickle.loads(b"damaged")  # noqa: S301 - a constant
        except pickle.UnpicklingError:
            logging.getLogger("torch._inductor.codecache").warning("the graph cannot be read", exc_info=True)

    blocks, known = find_blocks(tiny_llama), set[str]()
    with caplog.at_level(logging.INFO, "engine"), compiled_blocks(blocks, wanted=True, said=known):
        warn()
    with caplog.at_level(logging.INFO, "engine"), compiled_blocks(blocks, wanted=True, said=known):
        warn()
        warn()
        assert shown.getvalue() == ""
        other = Thread(target=warn)
        other.start()
        other.join()
    assert shown.getvalue().count("Traceback") == 1  # of the other thread, whose warnings are its own
    said = [record.message for record in caplog.records if record.name.startswith("engine")]
    assert said == ["PyTorch's compiler warns: the graph cannot be read"]
    warn()
    assert shown.getvalue().count("Traceback") == 2


@pytest.mark.slow
@pytest.mark.skipif(which("c++") is None, reason="there is no C++ compiler")
def test_damaged_compiled_code_is_compiled_again(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shown: StringIO,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(budget._RUN_WELL, "cpu", TOKENS)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    expected = capture(tiny_llama, tiny_tokenizer, compiled=True)["activations"]
    graphs = [path for path in (tmp_path / "fxgraph").rglob("*") if path.is_file()]
    for path in [*graphs, *(path for path in (tmp_path / "aotautograd").rglob("*") if path.is_file())]:
        path.write_bytes(b"damaged")
    torch._dynamo.reset()
    with caplog.at_level(logging.INFO, "engine"):
        found = capture(build(family_called("llama")), tiny_tokenizer, compiled=True)
    torch._dynamo.reset()
    assert found["provenance"]["compiled"] == "on"
    assert graphs
    assert "PyTorch's compiler warns: fx graph cache unable to load compiled graph" in caplog.text
    assert "Traceback" not in shown.getvalue()
    assert all(torch.equal(states, expected[layer]) for layer, states in found["activations"].items())


def test_wrong_states_are_not_used(tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(find_blocks(tiny_llama).blocks[0])
    forward = kind.forward
    monkeypatch.setattr(compiled, "_compiled", lambda _forward: lambda *args, **more: forward(*args, **more) * 1.01)
    why = why_not_compiled(tiny_llama, find_blocks(tiny_llama), TOKENS, 1e-3)
    assert why.startswith("compiled blocks change a token's state by 0.0")


@pytest.mark.parametrize(
    ("name", "how", "why"),
    [
        ("llama", {"site": "mlp_out"}, "mlp_out is read inside the blocks"),
        ("llama", {"prefix_reuse": False}, "prompts run in full"),
        ("gemma2", {}, "its attention window is only 4 tokens"),
        ("mamba", {}, "it does not accept position ids"),
    ],
)
def test_what_cannot_be_compiled_is_captured_as_it_is(
    name: str, how: dict[str, Any], why: str, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    data = capture(build(family_called(name)), tiny_tokenizer, compiled=True, **how)
    assert data["provenance"]["compiled"].startswith(f"no: {why}")


def test_a_disabled_compiler_is_not_recorded_as_used(
    tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs what it should compile as it is, without saying so."""

    def why() -> str:
        return why_not_compiled(tiny_llama, find_blocks(tiny_llama), TOKENS, 1e-3)

    with torch._dynamo.config.patch(disable=True):  # as TORCH_COMPILE_DISABLE does
        assert why().startswith("torch.compile is disabled")
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    assert why().startswith("torch.compile is disabled")


def test_a_resumed_capture_is_compiled_like_its_first_part(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    graphs: CompileCounterWithBackend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS * 3))
    monkeypatch.setattr(resume, "_SHARD_PROMPTS", len(PROMPTS))

    def run(name: str, **how: Any) -> list[bytes]:
        file = tmp_path / "prompts.txt"
        engine.capture_prompt_file(tiny_llama, tiny_tokenizer, file, name, store=tmp_path / "store", **how)
        assert '"compiled": "on"' in (tmp_path / "store" / f"{name}.json").read_text()
        return [path.read_bytes() for path in sorted((tmp_path / "store" / name).glob("*.safetensors"))]

    def stop(done: int, _total: int) -> None:
        if done > len(PROMPTS):
            raise KeyboardInterrupt

    whole = run("whole", compiled=True)
    with pytest.raises(KeyboardInterrupt):
        run("mine", compiled=True, progress=stop)
    with pytest.raises(StoreError, match="different settings: compiled was on, is now off"):
        run("mine", compiled=False)
    made = graphs.frame_count
    assert run("mine") == whole
    assert graphs.frame_count == made > 0


def test_every_length_of_rows_is_compiled(tiny_llama: PreTrainedModel, graphs: CompileCounterWithBackend) -> None:
    """PyTorch itself stops to compile after eight graphs."""
    for number in range(1, 13):
        assert not why_not_compiled(tiny_llama, find_blocks(tiny_llama), number * TOKENS, 1e-3)
        assert graphs.frame_count == number


def test_a_failure_at_another_length_of_prompts_says_what_to_do(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []

    def once(graph: Any, _inputs: object) -> Any:
        made.append(graph)
        if len(made) > 1:
            raise RuntimeError("the second graph fails")
        return graph

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=once))
    monkeypatch.setitem(budget._RUN_WELL, "cpu", TOKENS)
    monkeypatch.setattr(attention, "BATCHED_QUERIES", 8)
    monkeypatch.setattr(attention, "_GPU_LANES", 8)
    short = [f"w{3 + number} w{4 + number}" for number in range(60)]  # blocks see fewer keys than in the trial
    with pytest.raises(CaptureError, match=r"compiler fails: .*second graph fails") as caught:
        engine.capture_activations(tiny_llama, tiny_tokenizer, short, positions="last", compiled=True)
    torch._dynamo.reset()
    assert caught.value.said("command_line").endswith("Next: add --no-compile, under another name.")
    assert not any("forward" in vars(block) for block in find_blocks(tiny_llama).blocks)


def test_a_short_prefix_of_many_batches_does_not_keep_them_from_being_compiled(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    graphs: CompileCounterWithBackend,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompts = [f"{START} {' '.join(f'w{3 + (7 * i + 3 * j) % 100}' for j in range(40))}" for i in range(100)]
    ran: list[bool] = []

    def counting(blocks: Blocks, *, wanted: bool, said: set[str]) -> AbstractContextManager[None]:
        ran.append(wanted)
        return compiled_blocks(blocks, wanted=wanted, said=said)

    monkeypatch.setattr(reading, "compiled_blocks", counting)
    engine.capture_activations(tiny_llama, tiny_tokenizer, prompts, positions="last", compiled=True)
    assert sum(ran) >= len(ran) - 1 > 10
    assert graphs.frame_count == 1


@pytest.mark.parametrize("fails_first", [True, False])
def test_a_capture_resumes_as_it_was_started(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    graphs: CompileCounterWithBackend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fails_first: bool,
) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS * 2))
    monkeypatch.setattr(resume, "_SHARD_PROMPTS", len(PROMPTS))
    failing = [fails_first]

    def why(*_model: object) -> str:
        return "there is no compiler" if failing[0] else ""

    def stop(done: int, _total: int) -> None:
        if done > len(PROMPTS):
            raise KeyboardInterrupt

    monkeypatch.setattr(run_settings, "why_not_compiled", why)

    def run(progress: Progress | None = None) -> None:
        engine.capture_prompt_file(
            tiny_llama,
            tiny_tokenizer,
            tmp_path / "prompts.txt",
            "mine",
            store=tmp_path / "store",
            compiled=True,
            progress=progress,
        )

    with pytest.raises(KeyboardInterrupt):
        run(stop)
    failing[0] = not fails_first
    if fails_first:
        run()
        assert graphs.frame_count == 0
        assert '"compiled": "on"' not in (tmp_path / "store" / "mine.json").read_text()
    else:
        with pytest.raises(
            CaptureError, match=r"started with compiled blocks, .*not possible here: there is no compiler"
        ) as caught:
            run()
        assert caught.value.said("command_line").endswith("to resume, or start again with --no-compile --force.")


@pytest.mark.parametrize(
    ("prompts", "tokens"),
    [
        (PROMPTS[:2], TOKENS),
        (["w5 w6"], TOKENS),
        ([f"w{n} " + " ".join(f"w{3 + (n * i) % 100}" for i in range(49)) for n in range(9, 12)], 40),
    ],
    ids=["few", "one", "long"],
)
def test_the_record_says_that_no_row_runs_compiled(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    graphs: CompileCounterWithBackend,
    monkeypatch: pytest.MonkeyPatch,
    prompts: list[str],
    tokens: int,
) -> None:
    monkeypatch.setitem(budget._RUN_WELL, "cpu", tokens)
    data = engine.capture_activations(tiny_llama, tiny_tokenizer, prompts, positions="last", compiled=True)
    assert data["provenance"]["compiled"].startswith("no: no row of these prompts fills half of the")
    assert graphs.frame_count == 0


def test_what_is_neither_yes_nor_no_is_refused() -> None:
    with pytest.raises(RequestError, match=r"compiled cannot be 'off'\. Expected: True, False or None"):
        engine.CaptureRequest(PROMPTS, compiled="off")  # type: ignore[arg-type]


@pytest.mark.usefixtures("graphs")
def test_long_captures_on_a_gpu_are_compiled_unless_refused(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = sum(len(prompt.split()) for prompt in PROMPTS)
    monkeypatch.setattr(prepare, "pays_to_compile", lambda _model, count: count == tokens)
    assert capture(tiny_llama, tiny_tokenizer)["provenance"]["compiled"] == "on"
    assert "compiled" not in capture(tiny_llama, tiny_tokenizer, compiled=False)["provenance"]
    assert "compiled" not in capture(tiny_llama, tiny_tokenizer, site="mlp_out")["provenance"]


@pytest.mark.slow
@pytest.mark.skipif(which("c++") is None, reason="there is no C++ compiler")
def test_generated_code_gives_the_same_states(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    monkeypatch.setitem(budget._RUN_WELL, "cpu", TOKENS)
    expected = capture(tiny_llama, tiny_tokenizer)
    found = capture(tiny_llama, tiny_tokenizer, compiled=True)
    torch._dynamo.reset()
    assert found["provenance"]["compiled"] == "on"
    for layer, states in expected["activations"].items():
        torch.testing.assert_close(found["activations"][layer], states, rtol=1e-4, atol=1e-5)
