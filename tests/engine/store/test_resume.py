"""A capture that cannot resume is refused before its blocks are compiled, which may take a minute."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.capture import budget, prepare, run_settings
from engine.errors import StoreError
from engine.runtime import Processes
from engine.store import resume
from engine.store.names import locate
from engine.store.plan import hold_plan

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


@pytest.mark.parametrize(
    ("asked", "others", "ran"),
    [
        (True, ["on", "on"], "on"),
        (True, ["on", "no: no compiler was found"], "no: process 1 of 2 cannot compile them: no compiler was found"),
        (None, ["on", "off"], "off"),
    ],
)
def test_a_capture_runs_compiled_only_if_every_process_can(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    compiled: list[str],
    asked: bool | None,
    others: list[str],
    ran: str,
) -> None:
    monkeypatch.setattr(prepare, "pays_to_compile", lambda *_model: True)
    monkeypatch.setattr(Processes, "wait", lambda _processes: None)
    monkeypatch.setattr(Processes, "gather", lambda _processes, own: [own, *others[1:]])
    request = engine.CaptureRequest(PROMPTS, compiled=asked, paths=locate("mine", tmp_path), shards=True)
    prepared = engine.prepare_capture(tiny_llama, tiny_tokenizer, request)
    settings = resume._agreed_settings(prepared, locate("mine", tmp_path), Processes(0, 2))
    assert settings.compiled == ran
    assert len(compiled) == 1


def test_the_same_capture_is_compiled_again(capture: Capture, compiled: list[str]) -> None:
    capture()
    assert len(compiled) == 1
