"""An exported control vector in llama.cpp does what a plain hook on the Hugging Face model does, at its block only."""

import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import engine
from engine.models.registry import find_source
from engine.models.structure import find_blocks
from engine.records.files import Direction
from tests.conftest import Loaded
from tests.engine.steering.foreign_files import vector, write_gguf
from tests.engine.steering.test_vectors import BAD_GGUFS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp is not installed"),
    pytest.mark.skipif(sys.platform != "linux", reason="the driver knows the layout of the Linux wheels"),
]

DRIVER = Path(__file__).with_name("llama_cpp.py")
LAYERS = (1, 15, 29)
STRENGTH = 0.5
PROMPTS = (
    "The capital of France is",
    "I swear that I did not take it, and",
    "When the teacher asked who broke the window,",
    "A good recipe for bread needs",
)
Logits = NDArray[np.float64]


def run_llama_cpp(
    folder: Path, prompts: list[list[int]], runs: list[Any], files: list[str]
) -> tuple[Logits, list[int]]:
    """The logits of each run, `(runs, prompts, vocabulary)`, and the widths that are read from the files."""
    source = find_source("smollm2")
    model = str(Path(source.location) / str(source.gguf_file))
    jobs, logits = folder / "jobs.json", folder / "logits.npy"
    jobs.write_text(json.dumps({"model": model, "prompts": prompts, "runs": runs, "files": files}))
    result = subprocess.run(
        [sys.executable, str(DRIVER), str(jobs), str(logits)], capture_output=True, text=True, check=False
    )
    if result.returncode == -signal.SIGILL:
        pytest.skip("the wheel of xllamacpp uses instructions that this processor lacks")
    assert result.returncode == 0, result.stderr
    return np.load(logits).astype(np.float64), json.loads(result.stdout)


@contextmanager
def adding(block: nn.Module, values: Tensor) -> Iterator[None]:
    """Add a vector to the output of a block."""

    def add(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        return output + values if isinstance(output, Tensor) else (output[0] + values, *output[1:])

    handle = block.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


@pytest.fixture(scope="module")
def honesty(smollm2: Loaded) -> dict[int, Direction]:
    data = engine.capture_from_concept(*smollm2, "honesty", layers=[*LAYERS], max_samples=24, positions="last")
    return engine.extract_directions(data)


def changes_here(smollm2: Loaded, ids: list[list[int]], layer: int, values: Tensor) -> Logits:
    """What adding a vector at a block changes in the logits after each prompt."""
    blocks, found = find_blocks(smollm2.model).blocks, []
    with torch.no_grad():
        for prompt in ids:
            plain = smollm2.model(torch.tensor([prompt])).logits[0, -1]
            with adding(blocks[layer], values):
                steered = smollm2.model(torch.tensor([prompt])).logits[0, -1]
            found.append((steered - plain).double().numpy())
    return np.stack(found)


def test_an_exported_vector_acts_at_its_block(smollm2: Loaded, honesty: dict[int, Direction], tmp_path: Path) -> None:
    """At strength 0.5: below 0.2 the rounding of the quantized model hides the effect."""
    path = str(engine.export_directions(honesty, tmp_path / "honesty.gguf"))
    ids: list[list[int]] = [smollm2.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    runs = [[None, 0, 0], *([path, STRENGTH, layer] for layer in LAYERS)]
    logits, widths = run_llama_cpp(tmp_path, ids, runs, [path])
    assert widths == [576]
    for number, layer in enumerate(LAYERS, start=1):
        there = logits[number] - logits[0]
        values = STRENGTH * honesty[layer]["norm"] * honesty[layer]["vector"]
        alike = {}
        for block in range(max(0, layer - 1), min(30, layer + 2)):
            here = changes_here(smollm2, ids, block, values)
            alike[block] = float(np.corrcoef(here.ravel(), there.ravel())[0, 1])
            if block == layer:
                assert np.linalg.norm(there) == pytest.approx(np.linalg.norm(here), rel=0.1)
        assert alike.pop(layer) > 0.97
        assert max(alike.values()) < 0.95, f"layer {layer} acts at another block: {alike}"


def test_llama_cpp_and_the_importer_refuse_the_same_files(tmp_path: Path) -> None:
    files = {name: str(write_gguf(tmp_path / f"{name}.gguf", tensors)) for name, tensors in BAD_GGUFS.items()}
    good = [
        str(write_gguf(tmp_path / "row.gguf", {"direction.1": vector(1)[None]})),
        str(write_gguf(tmp_path / "gap.gguf", {"direction.1": vector(1), "direction.3": vector(3)})),
    ]
    _, widths = run_llama_cpp(tmp_path, [], [], [*files.values(), *good])
    assert dict(zip(files, widths, strict=False)) == dict.fromkeys(files, -1)
    assert widths[len(files) :] == [32, 32]
