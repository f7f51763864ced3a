"""Whether a capture compiles: refused before if it cannot resume, and all processes alike."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import local
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.capture import budget, prepare, run_settings
from engine.capture.run_settings import Settings
from engine.concepts.text_files import open_prompts
from engine.errors import StoreError
from engine.store import resume
from engine.store.names import locate
from engine.store.plan import hold_plan
from tests.engine.store.test_shares import Threads, threads_for
from tests.families import with_other_positions

START = " ".join(f"w{n}" for n in range(20, 36))
PROMPTS = [f"{START} w{40 + n} w{60 + n % 7} w{80 + n % 3}" for n in range(30)]
TOKENS = 128  # of a row; the distinct tokens of these prompts fill more than half of one

Capture = Callable[..., object]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The reasons why blocks are not compiled, of each attempt; none is compiled here."""
    monkeypatch.setitem(budget._RUN_WELL, "cpu", TOKENS)
    tried: list[str] = []

    def attempt(*_model: object) -> str:
        tried.append("")
        return ""

    monkeypatch.setattr(run_settings, "why_not_compiled", attempt)
    monkeypatch.setattr("engine.models.compiled._compiled", lambda forward: forward)
    return tried


@pytest.fixture
def capture(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    compiled: list[str],
) -> Capture:
    """Capture two shards; a first, compiled capture was interrupted after one of them."""
    monkeypatch.setattr(resume, "_SHARD_PROMPTS", len(PROMPTS))
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS * 2))

    def run(**how: Any) -> object:
        how.setdefault("compiled", True)
        how["store"] = tmp_path / "store"
        return engine.capture_prompt_file(tiny_llama, tiny_tokenizer, tmp_path / "prompts.txt", "mine", **how)

    def stop(done: int, _total: int) -> None:
        if done > len(PROMPTS):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(progress=stop)
    assert len(compiled) == 1
    compiled.clear()
    return run


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"layers": [1]}, "layers was"),
        ({"positions": "all"}, "positions was last, is now all"),
        ({"compiled": False}, "compiled was on, is now off"),
        ({"store_dtype": "bfloat16"}, "store dtype was as captured"),
    ],
)
def test_other_settings_are_refused_before_compiling(
    capture: Capture, compiled: list[str], how: dict[str, Any], said: str
) -> None:
    with pytest.raises(StoreError, match=said):
        capture(**how)
    assert compiled == []


def test_other_prompts_are_refused_before_compiling(capture: Capture, compiled: list[str], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join([*PROMPTS, *PROMPTS[1:], PROMPTS[0]]))
    with pytest.raises(StoreError, match="the texts of the prompts changed"):
        capture()
    assert compiled == []


@pytest.mark.parametrize("force", [False, True])
def test_a_capture_in_progress_is_refused_before_compiling(
    capture: Capture, compiled: list[str], tmp_path: Path, force: bool
) -> None:
    with hold_plan(locate("mine", tmp_path / "store")), pytest.raises(StoreError, match="capturing 'mine' now"):
        capture(force=force)
    assert compiled == []


def prepare_for(
    budgets: tuple[int, int],
    request: engine.CaptureRequest,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> list[prepare.PreparedCapture]:
    """Prepare a capture in two processes that measure different token budgets."""
    prepared = []
    for tokens in budgets:
        monkeypatch.setitem(budget._RUN_WELL, "cpu", tokens)
        prepared.append(engine.prepare_capture(model, tokenizer, request))
    return prepared


class Here(local):
    """The rank of the process that a thread takes the place of."""

    rank = 0


@pytest.mark.parametrize("budgets", [(TOKENS, 512), (TOKENS, 64), (TOKENS, TOKENS)])
@pytest.mark.parametrize(
    ("asked", "pays", "unable", "ran"),
    [
        (True, (), (), "on"),
        (None, (0,), (), "on"),
        (None, (1,), (), "off"),
        (True, (), (1,), "no: process 1 of 2 cannot compile them: no compiler was found"),
        (None, (0, 1), (1,), "off"),
        (True, (), (0,), "no: no compiler was found"),
    ],
)
def test_all_processes_do_as_the_main_one_if_each_can(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    budgets: tuple[int, int],
    asked: bool | None,
    pays: tuple[int, ...],
    unable: tuple[int, ...],
    ran: str,
) -> None:
    tried: list[tuple[int, int]] = []
    here = Here()

    def attempt(_model: object, _blocks: object, tokens: int, _tolerance: float) -> str:
        tried.append((here.rank, tokens))
        return "no compiler was found" if here.rank in unable else ""

    def run(processes: Threads) -> Settings:
        here.rank = processes.rank
        return resume._agreed_settings(prepared[processes.rank], locate("mine", tmp_path), processes)

    monkeypatch.setattr(run_settings, "why_not_compiled", attempt)
    monkeypatch.setattr(prepare, "pays_to_compile", lambda *_model: here.rank in pays)
    request = engine.CaptureRequest(PROMPTS, compiled=asked, paths=locate("mine", tmp_path), shards=True)
    prepared = prepare_for(budgets, request, tiny_llama, tiny_tokenizer, monkeypatch)
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(run, threads_for(2)))
    assert [(settings.compiled, settings.limits.tokens) for settings in found] == [(ran, TOKENS)] * 2
    tries = 0 if asked is None and 0 not in pays else 1 if 0 in unable else 2
    assert tried == [(rank, TOKENS) for rank in range(tries)]


@pytest.mark.usefixtures("capture")
@pytest.mark.parametrize("other", ["store", "not shared"])
def test_all_processes_resume_with_the_saved_token_budget(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    other: str,
) -> None:
    request = engine.CaptureRequest(open_prompts(tmp_path / "prompts.txt"), compiled=True)
    prepared = prepare_for((512, 64), request, tiny_llama, tiny_tokenizer, monkeypatch)
    paths = [locate("mine", tmp_path / store) for store in ("store", other)]
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(resume._agreed_settings, prepared, paths, threads_for(2)))
    assert [(settings.compiled, settings.limits.tokens) for settings in found] == [("on", TOKENS)] * 2


def test_the_same_capture_is_compiled_again(capture: Capture, compiled: list[str]) -> None:
    capture()
    assert len(compiled) == 1


def test_a_capture_is_not_resumed_with_another_configuration(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resume, "_SHARD_PROMPTS", len(PROMPTS))
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS * 2))

    def stop(done: int, _total: int) -> None:
        if done > len(PROMPTS):
            raise KeyboardInterrupt

    def run(model: PreTrainedModel, **how: Any) -> object:
        return engine.capture_prompt_file(model, tiny_tokenizer, tmp_path / "prompts.txt", tmp_path / "mine", **how)

    with pytest.raises(KeyboardInterrupt):
        run(tiny_llama, progress=stop)
    with pytest.raises(StoreError, match="the configuration of the model changed"):
        run(with_other_positions(tiny_llama))
    run(tiny_llama)
