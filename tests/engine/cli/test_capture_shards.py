"""Captures that are saved as shards, and their messages."""

import contextlib
import json
import os
import pty
import subprocess
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.cli.console import Narrator
from engine.concepts.pair_files import open_pairs
from engine.store.names import locate
from tests.engine.cli.conftest import assert_failed, concept_text
from tests.program import Program

PAIRS = [{"positive": f"w5 w{20 + i}", "negative": f"w6 w7 w{20 + i}", "topic": f"w{20 + i}"} for i in range(9)]


def test_large_captures_are_saved_as_shards_with_a_message(
    tmp_path: Path,
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, PAIRS)))
    for limit, large in ((2**30, False), (1, True)):
        paths = locate(f"{limit}", tmp_path / "store")
        request = engine.CaptureRequest(open_pairs(path), positions="all", most_in_memory=limit, paths=paths)
        with Narrator(quiet=False).steps() as steps:
            engine.capture_and_save(tiny_llama, tiny_tokenizer, request, steps=steps)
        assert paths.in_shards is large
    assert "GB of states as shards" in capsys.readouterr().err


def test_pairs_and_concepts_are_saved_as_shards_on_request(layerscope: Program, tiny_folder: Path) -> None:
    rows = "\n".join(map(json.dumps, PAIRS))
    (layerscope.folder / "mine.jsonl").write_text(rows)
    (layerscope.folder / "loudness.toml").write_text(concept_text("loudness"))
    command = ("capture", "--model", str(tiny_folder), "--quiet")
    for what, name in (
        (("--pairs", "mine.jsonl"), "tiny_mine"),
        (("--concept", "loudness.toml", "-n", "20"), "tiny_loudness"),
    ):
        whole = layerscope(*command, *what, "--output", f"whole/{name}", "--json")
        parts = layerscope(*command, *what, "--shards", "--json")
        assert parts.returncode == 0, parts.stderr
        assert (layerscope.folder / "activations" / name / "plan.json").exists()
        one, other = json.loads(whole.stdout), json.loads(parts.stdout)
        assert [row["layer"] for row in one["ranking"]["layers"]] == [
            row["layer"] for row in other["ranking"]["layers"]
        ]
        assert one["confounds"] == other["confounds"]
        ranked = layerscope("rank", name)
        assert ranked.returncode == 0, ranked.stderr
        shown = layerscope("visualize", f"activations/{name}", "--layer", "2", "--no-plot")
        assert "held-out pairs are misordered" in shown.stdout


def test_an_unfinished_capture_in_shards_is_resumed_without_the_option(layerscope: Program, tiny_folder: Path) -> None:
    (layerscope.folder / "mine.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    command = ("capture", "--model", str(tiny_folder), "--pairs", "mine.jsonl", "--positions", "last", "--quiet")
    assert layerscope(*command, "--shards").returncode == 0
    folder = layerscope.folder / "activations" / "tiny_mine"
    (folder.with_suffix(".json")).unlink()
    gone = sorted(folder.glob("*.safetensors"))[-1]
    gone.unlink()  # as if killed before the last shard
    again = layerscope(*command)
    assert again.returncode == 0, again.stderr
    assert gone.exists()
    assert not folder.with_suffix(".pt").exists()


def test_single_prompts_are_not_saved_as_shards(layerscope: Program) -> None:
    assert_failed(layerscope("capture", "--prompt", "hello", "--shards"), 2)
    (layerscope.folder / "bad.jsonl").write_text('{"positive": "w5"}\n')
    assert_failed(layerscope("capture", "--pairs", "bad.jsonl", "--shards"), 2)


@pytest.mark.parametrize(
    "shards", [pytest.param((), id="memory"), pytest.param(("--shards",), id="shards", marks=pytest.mark.slow)]
)
def test_a_terminal_shows_progress(layerscope: Program, tiny_folder: Path, shards: tuple[str, ...]) -> None:
    (layerscope.folder / "mine.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    command = ("capture", "--model", str(tiny_folder), "--pairs", "mine.jsonl", "--positions", "last", *shards)
    terminal, end = pty.openpty()
    with subprocess.Popen(
        layerscope.command(*command),
        cwd=layerscope.folder,
        env=layerscope.environment(TERM="xterm"),
        stdout=subprocess.DEVNULL,
        stderr=end,
    ) as process:
        os.close(end)
        shown = b""
        with contextlib.suppress(OSError):  # how Linux reports that no writer is left
            while read := os.read(terminal, 2**16):
                shown += read
    os.close(terminal)
    assert process.returncode == 0
    places = [shown.find(step) for step in (b"running prompts", b"looking for confounds", b"ranking layers", b"saved")]
    assert -1 not in places
    assert places == sorted(places)
