"""The speed benchmark prints a table of the requested methods and refuses what it cannot measure."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.capture_speed import main

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "capture_speed.py"


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


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--compile"], "--compile and --tokenizer need --shapes"),
        (["--shapes", "--ways", "hooks_disk"], "hooks_disk needs a saved model, not --shapes"),
    ],
)
def test_options_that_do_not_fit_together(
    options: list[str], reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options])
    with pytest.raises(SystemExit):
        main()
    assert reason in capsys.readouterr().err


@pytest.mark.slow
def test_each_shape_is_measured_in_a_process_of_its_own() -> None:
    result = measure("--shapes", "tiny", "tiny", "--rounds", "1", "--prompts", "4", "--ways", "expert", "--markdown")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("|by hand: sorted, decoder only, hooks") == 2
    failed = measure("--shapes", "tiny", "--tokenizer", str(SCRIPT.parent))
    assert failed.returncode == 1
    assert failed.stderr.rstrip().endswith("failed: tiny")
