"""`layerscope capture --device-map`: a model larger than its memory limit."""

import os
import sys
from pathlib import Path

import pytest
import torch

from tests.engine.cli.conftest import assert_failed
from tests.program import Program, Result

_MEMORY = """
import atexit, pathlib, runpy, sys
status = pathlib.Path("/proc/self/status")
atexit.register(lambda: print([line.split()[1] for line in status.read_text().splitlines() if "VmHWM" in line][0]))
runpy.run_module("engine", run_name="__main__", alter_sys=True)
"""
_WEIGHTS_KB = 538_000  # of the default model, in float32


def measured(program: Program, *arguments: str) -> tuple[Result, int]:
    """The output of the program, and its peak memory in kilobytes."""
    result = program.python("-c", _MEMORY, *arguments, PYTHONPATH=os.pathsep.join(sys.path))
    assert result.returncode == 0, result.stderr
    return result, int(result.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from Linux")
def test_offloading_gives_the_same_states_in_less_memory(layerscope: Program) -> None:
    command = ("capture", "--prompt", "Tell me a story about the sea")
    _, whole = measured(layerscope, *command, "--output", "whole")
    said, spread = measured(
        layerscope, *command, "--output", "spread", "--device-map", "auto", "--max-memory", "50MB", "--use-hooks"
    )
    assert "layers 0-29 on disk" in said.stderr
    assert "torch.float32 on cpu; load check passed" in said.stderr
    assert "meta" not in said.stderr
    one, other = (torch.load(layerscope.folder / f"{name}.pt")["activations"] for name in ("whole", "spread"))
    assert all(torch.equal(one[layer], other[layer]) for layer in range(30))
    assert spread < whole - 0.4 * _WEIGHTS_KB


def test_a_prompt_file_with_weights_on_disk(layerscope: Program, tiny_folder: Path) -> None:
    (layerscope.folder / "some.txt").write_text("w5 w6\nw7\n")
    command = ("capture", "--model", str(tiny_folder), "--prompts", "some.txt", "--output")
    assert layerscope(*command, "whole").returncode == 0
    result = layerscope(*command, "spread", "--device-map", "sequential", "--max-memory", "cpu=0")
    assert result.returncode == 0, result.stderr
    one, other = ((layerscope.folder / name / f"{0:012d}.safetensors").read_bytes() for name in ("whole", "spread"))
    assert one == other


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--max-memory", "1GB"), "--max-memory needs --device-map. Next: add --device-map auto"),
        (("--device-map", "auto", "--max-memory", "lots"), "'lots' is not a size"),
        (("--device-map", "auto", "--max-memory", "gpu=1GB"), "no device 'gpu'"),
        (("--device-map", "auto", "--max-memory", "99=1GB"), "no GPU 99"),
        (("--device-map", "auto", "--device", "cpu"), "exclude each other"),
        (("--device-map", "atuo"), "did you mean 'auto'"),
    ],
)
def test_invalid_options_are_refused(
    layerscope: Program, tiny_folder: Path, options: tuple[str, ...], said: str
) -> None:
    result = layerscope("capture", "--model", str(tiny_folder), "--prompt", "w5", *options)
    assert_failed(result, 2)
    assert said in " ".join(result.stderr.split())
