"""Captures that are saved as shards, and their messages."""

import contextlib
import json
import os
import pty
import subprocess
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load, save
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
import engine.store.save
from engine.cli import console
from engine.cli.console import Narrator
from engine.concepts.pair_files import open_pairs
from engine.store import resume
from engine.store.names import CapturePaths, locate
from engine.store.shards import Shard, write_shard
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


def test_a_renamed_unfinished_capture_is_resumed_as_list_verify_and_show_say(
    layerscope: Program, tiny_folder: Path
) -> None:
    (layerscope.folder / "mine.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    command = ("capture", "--model", str(tiny_folder), "--pairs", "mine.jsonl", "--positions", "last", "--quiet")
    assert layerscope(*command, "--shards").returncode == 0
    store = layerscope.folder / "activations"
    (store / "tiny_mine.json").unlink()
    sorted((store / "tiny_mine").glob("*.safetensors"))[-1].unlink()  # as if killed before the last shard
    assert layerscope("rename", "tiny_mine", "other").returncode == 0
    option = "--output activations/other"
    for said in (layerscope("list").stdout, layerscope("verify").stdout):
        assert f"run the same capture again with {option} to resume" in " ".join(said.split())
    assert f"run the same capture command again, with {option}, to resume" in layerscope("show", "other").stderr
    again = layerscope(*command, *option.split())
    assert again.returncode == 0, again.stderr
    assert layerscope("verify").stdout == "other: ok\n"


@pytest.mark.parametrize("replaced", [False, True])
def test_ctrl_c_says_what_is_saved_and_which_command_resumes(
    layerscope: Program, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    rows = [{"positive": f"w5 w{20 + i}", "negative": f"w6 w{20 + i}"} for i in range(9)]
    (layerscope.folder / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(resume, "_SHARD_PROMPTS", 6)
    command = ("capture", "--model", str(tiny_folder), "--pairs", "mine.jsonl", "--shards")
    if replaced:
        assert layerscope(*command).returncode == 0

    def interrupted(shard: Shard, content: list[bytes | memoryview]) -> None:
        write_shard(shard, content)
        if shard.start > 0:
            raise KeyboardInterrupt

    def interrupted_load(*_given: object, **_options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("engine.store.shard_run.write_shard", interrupted)
        stopped = layerscope(*command, "--force")
    assert stopped.returncode == 130
    folder = f"activations/{'.replacements/' if replaced else ''}tiny_mine{os.sep}"
    kept = "the previous capture is unchanged, and " if replaced else ""
    assert stopped.stderr.count("interrupted") == 1
    assert stopped.stderr.endswith(
        f"interrupted: {kept}2 of 3 shards are saved in {folder}; to resume: layerscope {' '.join(command)}\n"
    )
    assert ("tiny_mine stays until its replacement is complete" in stopped.stderr) is replaced
    assert (layerscope("show", "tiny_mine").returncode == 0) is replaced
    with monkeypatch.context() as patch:
        patch.setattr("engine.models.loading.load_model_and_tokenizer", interrupted_load)
        early = layerscope(*command, "--force", "--layers", "1")
    assert early.returncode == 130
    assert early.stderr == (
        f"interrupted while the model was loaded; 2 of 3 shards of the unfinished capture in {folder} are unchanged\n"
    )
    with monkeypatch.context() as patch:
        patch.setattr(resume, "_start", interrupted_load)
        other = layerscope(*command, "--force", "--layers", "1")  # would be refused without --force
    assert other.returncode == 130
    assert other.stderr.endswith(f"interrupted; 2 of 3 shards of the unfinished capture in {folder} are unchanged\n")
    resumed = layerscope(*command, "--force")  # as well as without
    assert resumed.returncode == 0
    assert "resuming: 2 of 3 shards are saved" in resumed.stderr
    record = json.loads((layerscope.folder / "activations/tiny_mine.json").read_text())
    rewrite_without_checksums(layerscope.folder / "activations", record)
    shown = layerscope("show", "tiny_mine")
    assert "checksums unverified: saved before shards had checksums" in " ".join(shown.stdout.split())
    first = layerscope.folder / "activations/tiny_mine/000000000000.safetensors"
    first.write_bytes(b"x" * first.stat().st_size)
    assert "is damaged" in layerscope("show", "tiny_mine").stdout


def test_ctrl_c_while_a_capture_is_replaced_says_that_the_new_one_is_saved(
    layerscope: Program, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (layerscope.folder / "mine.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    command = ("capture", "--model", str(tiny_folder), "--pairs", "mine.jsonl", "--shards")
    assert layerscope(*command).returncode == 0

    def interrupted(paths: CapturePaths) -> None:
        if paths.replacement.record.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(resume, "put_in_place", interrupted)
        stopped = layerscope(*command, "--force", "--layers", "1")
    assert stopped.returncode == 130
    assert stopped.stderr.endswith("interrupted after the capture was saved\n")
    record = json.loads((layerscope.folder / "activations/tiny_mine.json").read_text())
    assert record["captured_layers"] == [1]


def rewrite_without_checksums(store: Path, record: dict[str, Any]) -> None:
    """Turn a capture into one from before shards had checksums."""
    folder = store / record["name"]
    for path in folder.glob("*.safetensors"):
        path.write_bytes(save(load(path.read_bytes())))
    record["data"]["bytes"] = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    (store / f"{record['name']}.json").write_text(json.dumps(record))


def test_ctrl_c_before_anything_is_saved_says_so(
    layerscope: Program, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    command = ("capture", "--model", str(tiny_folder), "--prompt", "w5")
    with monkeypatch.context() as patch:
        patch.setattr(engine.store.save, "capture_in_memory", interrupted)
        stopped = layerscope(*command)
    assert stopped.returncode == 130
    assert stopped.stderr.count("interrupted") == 1
    assert stopped.stderr.endswith("interrupted before anything was saved; --shards makes a capture resumable\n")
    assert layerscope(*command).returncode == 0
    monkeypatch.setattr(engine.store.save, "capture_in_memory", interrupted)
    assert layerscope(*command, "--force").stderr.endswith(
        "interrupted before anything was saved; the previous capture is unchanged; --shards makes a capture resumable\n"
    )


def test_without_a_terminal_progress_is_lines_that_are_not_too_many(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def narrated(quiet: bool = False) -> str:
        with Narrator(quiet=quiet).steps() as steps:
            for done in range(1000):
                steps("running prompts", done, 1000)
            steps("saving", 0, 0)
        return capsys.readouterr().err

    assert narrated() == ""  # it took less than half a minute
    monkeypatch.setattr(console, "EVERY", 0.0)
    lines = narrated().splitlines()
    assert (lines[0], lines[-2:]) == ("running prompts: 0 of 1,000", ["running prompts: 999 of 1,000", "saving"])
    assert narrated(quiet=True) == ""


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
    places = [shown.find(step) for step in (b"running prompts", b"ranking layers", b"looking for confounds", b"saved")]
    assert -1 not in places
    assert places == sorted(places)
