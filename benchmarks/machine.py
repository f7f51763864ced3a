"""What the machine gives a process: the speed of its matrix products, time, and how much memory was taken."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from engine.models.products import product_error
from engine.models.shortcuts import ONEDNN_TOLERANCE

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Machine:
    """What does the work.

    Attributes:
        device: Where the model is.
        threads: Of torch on the CPU.
    """

    device: torch.device
    threads: int

    def clock(self) -> float:
        """Seconds, those of the processor where one thread of it does all; a GPU is waited for."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.threads == 1:
            return time.process_time()
        return time.perf_counter()

    def gemm_speed(self, model: PreTrainedModel) -> float:
        """Operations a second of the largest matrix in a block times some tokens, the best of several ways and times.

        The tokens are 512, and 4,096 on a GPU.
        """
        largest = max((w for w in model.parameters() if w.dim() == 2 and len(w) < 32_000), key=lambda w: w.numel())
        kind: dict[str, Any] = {"dtype": largest.dtype, "device": self.device}
        weight = torch.randn(largest.shape, **kind)  # the model's own may lie on the disk
        states = torch.randn(512 if self.device.type == "cpu" else 4096, weight.shape[1], **kind)
        exact = product_error([(weight.shape[0], weight.shape[1])]) < ONEDNN_TOLERANCE  # oneDNN, in float32
        backend: Any = torch.backends.mkldnn  # which does not declare what it holds
        mkldnn = backend.matmul
        before, best = mkldnn.fp32_precision, 0.0
        with torch.no_grad():
            for precision in ("none", "bf16") if exact else ("none",):
                mkldnn.fp32_precision = precision
                for _ in range(30):
                    begun = self.clock()
                    torch.nn.functional.linear(states, weight)
                    best = max(best, 2 * weight.numel() * len(states) / (self.clock() - begun))
        mkldnn.fp32_precision = before
        return best

    def reset_peak(self) -> None:
        """Forget the memory that loading took; on a CPU where the system can (Linux)."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return

    def peak_mb(self) -> float:
        """Most memory held since, in MB: a GPU's tensors, or all of a process; if that is not known, since it began."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e6
        status = Path("/proc/self/status")
        if status.exists():
            line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
            return int(line.split()[1]) / 1e3
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
