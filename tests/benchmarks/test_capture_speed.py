"""The speed benchmark checks what it measures and gives a reason for every skipped method."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.capture_speed import ALL_WAYS, checked, main
from benchmarks.ways import Read, States, Way, Work, by_hand

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "capture_speed.py"
TEXTS = ["w3 w4 w5 w6", "w7", "w8 w9 w10", "w11 w12 w13 w14 w15"]


def measure(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_table_lists_the_requested_methods(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tiny_llama.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    result = measure("--ways", "plain", "hooks", "--rounds", "1", "--model", str(tmp_path), "--markdown")
    assert result.returncode == 0, result.stderr
    rows = [line for line in result.stdout.splitlines() if line.startswith("|")]
    labels, speeds = zip(*([cell.strip() for cell in row.split("|")[1:3]] for row in rows[2:]), strict=True)
    assert labels == ("plain forward, batches of 16, no capture", "layerscope, --use-hooks")
    assert speeds[0] == "1.00"
    assert "hooks: states differ from layerscope's by" in result.stderr


@pytest.mark.skipif(find_spec("nnsight") is not None, reason="nnsight is installed")
def test_a_requested_tool_that_is_not_installed_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--ways", "plain", "nnsight"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == "nnsight: not installed, see benchmarks/requirements.txt"
    assert capsys.readouterr() == ("", "")


@torch.no_grad()
def test_ways_by_hand_capture_what_layerscope_does(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Including the last layer, which `output_hidden_states` returns after the final norm."""
    for name in ("howto", "batched", "expert"):
        read, says = checked(name, Work(tiny_llama.eval(), tiny_tokenizer, [0, 3], "last"), TEXTS)
        assert read is not None
        (distance,) = re.findall(r"at most (\S+) of their norm", says)
        assert float(distance) < 1e-5


@torch.no_grad()
def test_a_tool_that_captures_something_else_or_fails_is_not_timed(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work(tiny_llama.eval(), tiny_tokenizer, [0, 1], "last")

    def one_layer_late(work: Work) -> Read:
        read = by_hand(Work(work.model, work.tokenizer, [1, 2], "last"))

        def read_late(texts: list[str]) -> States:
            return {layer - 1: states for layer, states in read(texts).items()}

        return read_late

    def broken(_: Work) -> Read:
        raise AttributeError("np.float_ was removed")

    monkeypatch.setitem(ALL_WAYS, "nnsight", Way("late", one_layer_late))
    read, says = checked("nnsight", work, TEXTS)
    assert read is None
    assert says.startswith("states differ from layerscope's by")
    monkeypatch.setitem(ALL_WAYS, "nnsight", Way("broken", broken))
    assert checked("nnsight", work, TEXTS) == (None, "it fails with AttributeError: np.float_ was removed")
