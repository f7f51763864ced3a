"""What the machine gives a process: the speed of its matrix products, and how much memory was taken."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def gemm_speed(model: PreTrainedModel, clock: Callable[[], float]) -> float:
    """Operations a second of the largest matrix in a block times 512 tokens, the best of several ways and times."""
    largest = max((w for w in model.parameters() if w.dim() == 2 and len(w) < 32_000), key=lambda w: w.numel())
    weight = torch.randn(largest.shape, dtype=largest.dtype)  # the model's own may lie on the disk
    states = torch.randn(512, weight.shape[1], dtype=weight.dtype)
    backend: Any = torch.backends.mkldnn  # which does not declare what it holds
    mkldnn = backend.matmul
    before, best = mkldnn.fp32_precision, 0.0
    with torch.no_grad():
        for precision in ("none", "bf16"):
            mkldnn.fp32_precision = precision
            for _ in range(30):
                begun = clock()
                torch.nn.functional.linear(states, weight)
                best = max(best, 2 * weight.numel() * len(states) / (clock() - begun))
    mkldnn.fp32_precision = before
    return best


def reset_peak() -> None:
    """Forget the memory that loading took, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_mb() -> float:
    """Most memory held since, in MB; where the system cannot tell, since the process began."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
