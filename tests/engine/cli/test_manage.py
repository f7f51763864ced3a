"""`layerscope verify`, `rename` and `delete`."""

import io
import json
import os
import sys
from pathlib import Path

import pytest
import typer

from engine.cli import manage
from tests.engine.cli.conftest import assert_failed
from tests.program import Program, unprivileged


@pytest.mark.usefixtures("store")
def test_a_sound_store_is_said_line_by_line(layerscope: Program) -> None:
    result = layerscope("verify")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "smollm2_honesty: ok\nsmollm2_prompt: ok\ntiny_prompt: ok\n"
    one = layerscope("verify", "tiny_prompt", "--json")
    assert json.loads(one.stdout) == [{"name": "tiny_prompt", "status": "ok", "problem": ""}]


def test_damage_ends_with_5(layerscope: Program, store: Path) -> None:
    content = bytearray((store / "tiny_prompt.pt").read_bytes())
    content[-200] ^= 64
    (store / "tiny_prompt.pt").write_bytes(content)
    result = layerscope("verify")
    assert result.returncode == 5
    assert "tiny_prompt: damaged: tiny_prompt.pt does not match the checksum in tiny_prompt.json\n" in result.stdout
    assert "smollm2_prompt: ok\n" in result.stdout
    assert "error: 1 of 3 captures is damaged" in result.stderr
    assert json.loads(layerscope("verify", "--json").stdout)[2]["status"] == "damaged"


def test_clean_reports_what_it_deletes(layerscope: Program, store: Path) -> None:
    leftover = store / ".tiny_prompt.pt.1a2b3c4d.unfinished"
    leftover.touch()
    assert "deleted activations/.tiny_prompt.pt.1a2b3c4d.unfinished" in layerscope("verify", "--clean").stderr
    assert not leftover.exists()
    assert "no temporary files of killed saves" in layerscope("verify", "tiny_prompt", "--clean").stderr


def test_rename_and_delete_move_all_files(layerscope: Program, store: Path) -> None:
    result = layerscope("rename", "tiny_prompt", "final")
    assert (result.returncode, result.stdout) == (0, "")
    assert "renamed tiny_prompt to final in activations" in result.stderr
    assert (store / "final.pt").exists()
    assert_failed(layerscope("rename", "final", "smollm2_prompt"), 5)
    refused = layerscope("delete", "final")
    assert_failed(refused, 2)
    assert "add --yes" in refused.stderr
    deleted = layerscope("delete", "activations/final.pt", "--yes")
    assert (deleted.returncode, deleted.stderr) == (0, "deleted final.json\ndeleted final.pt\n")
    assert not list(store.glob("*final*"))


def test_directions_of_another_capture_are_kept_and_said(layerscope: Program, contrasts: Path) -> None:
    layerscope("directions", "loudness", "--output", "probe")
    (contrasts / "probe.directions.safetensors").rename(contrasts / "warmth.directions.safetensors")
    renamed = layerscope("rename", "warmth", "heat")
    assert renamed.stderr.splitlines() == [
        "renamed warmth to heat in activations",
        "kept warmth.directions.safetensors: the directions warmth come from the capture 'loudness'",
    ]
    layerscope("rename", "warmth", "probe")
    (contrasts / "probe.directions.safetensors").rename(contrasts / "heat.directions.safetensors")
    deleted = layerscope("delete", "activations/heat.pt", "--yes")
    assert deleted.stderr.splitlines() == [
        "deleted heat.json",
        "deleted heat.pt",
        "kept heat.directions.safetensors: the directions heat come from the capture 'loudness'",
    ]


def test_directions_under_another_name_are_kept_and_said(layerscope: Program, contrasts: Path) -> None:
    for name in ("loudness", "probe"):
        assert layerscope("directions", "loudness", "--output", name).returncode == 0
    deleted = layerscope("delete", "loudness", "--yes").stderr
    assert "deleted loudness.directions.safetensors\n" in deleted
    assert "kept probe.directions.safetensors: directions of this capture, saved under another name" in deleted
    assert (contrasts / "probe.directions.safetensors").exists()


def test_the_path_of_a_directions_file_names_its_capture_and_deletes_only_itself(
    layerscope: Program, contrasts: Path
) -> None:
    layerscope("directions", "loudness")
    renamed = layerscope("rename", "activations/loudness.directions.safetensors", "noise")
    assert (renamed.returncode, renamed.stderr) == (0, "renamed loudness to noise in activations\n")
    assert layerscope("rank", "activations/noise.directions.safetensors").stdout == layerscope("rank", "noise").stdout
    deleted = layerscope("delete", "activations/noise.directions.safetensors", "--yes")
    assert (deleted.returncode, deleted.stderr) == (0, "deleted noise.directions.safetensors\n")
    assert sorted(path.name for path in contrasts.glob("noise*")) == ["noise.json", "noise.pt"]


@pytest.mark.usefixtures("store")
def test_a_terminal_is_asked(
    layerscope: Program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.chdir(layerscope.folder)
    monkeypatch.setattr(sys, "stdin", Terminal("n\nn\ny\n"))
    for name, asked in (("tiny_prompt", " with its tensors and directions?"), ("x.directions.safetensors", "?")):
        with pytest.raises(typer.Exit):
            manage.delete(name)
        assert f"{name}{asked}" in capsys.readouterr().err
    assert Path("activations/tiny_prompt.pt").exists()
    manage.delete("tiny_prompt", Path("activations"))
    assert not Path("activations/tiny_prompt.pt").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has other permissions")
def test_a_file_that_may_not_be_read_needs_permission_and_no_new_capture(layerscope: Program, store: Path) -> None:
    (store / "tiny_prompt.pt").chmod(0)
    with unprivileged(store):
        result = layerscope("verify")
    assert result.returncode == 5
    assert "tiny_prompt: unreadable: activations/tiny_prompt.pt cannot be read: Permission denied\n" in result.stdout
    assert "error: 1 of 3 captures cannot be read. Next: ask its owner for permission" in result.stderr
    assert not any(word in result.stderr for word in ("damaged", "--force", "delete"))
    (store / "tiny_prompt.json").chmod(0)
    with unprivileged(store):
        listed = layerscope("list")
    said = " ".join(listed.stdout.split())
    assert "tiny_prompt activations/tiny_prompt.json cannot be read: Permission denied" in said
