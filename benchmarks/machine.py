"""Measurements of the machine: matrix product speed, time and peak memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
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
    """Device and threads that a benchmark runs on.

    Attributes:
        device: Device of the model.
        threads: Number of torch threads on the CPU.
    """

    device: torch.device
    threads: int

    def name(self) -> str:
        """Name of the GPU, or "CPU"."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"

    def clock(self) -> float:
        """Current time in seconds: processor time if there is one CPU thread.

        On a GPU, wall-clock time after pending work has finished.
        """
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.threads == 1:
            return time.process_time()
        return time.perf_counter()

    def gemm_speed(self, model: PreTrainedModel) -> float:
        """Operations per second when multiplying the largest weight of a block.

        The other factor is a batch of 512 tokens on a CPU. On a GPU it is 16,384 tokens, and a run is ten products, so
        that waiting for the device hardly counts. The best of 30 runs per precision setting.
        """
        tokens, repeats = (512, 1) if self.device.type == "cpu" else (16_384, 10)
        largest = max((w for w in model.parameters() if w.dim() == 2 and len(w) < 32_000), key=lambda w: w.numel())
        kind: dict[str, Any] = {"dtype": largest.dtype, "device": self.device}
        weight = torch.randn(largest.shape, **kind)  # random, because the model's own may be on disk
        states = torch.randn(tokens, weight.shape[1], **kind)
        exact = product_error([(weight.shape[0], weight.shape[1])]) < ONEDNN_TOLERANCE  # oneDNN, in float32
        backend: Any = torch.backends.mkldnn  # its attributes are not declared
        mkldnn = backend.matmul
        before, best = mkldnn.fp32_precision, 0.0
        with torch.no_grad():
            for precision in ("none", "bf16") if exact else ("none",):
                mkldnn.fp32_precision = precision
                for _ in range(30):
                    start = self.clock()
                    for _ in range(repeats):
                        torch.nn.functional.linear(states, weight)
                    best = max(best, repeats * 2 * weight.numel() * tokens / (self.clock() - start))
        mkldnn.fp32_precision = before
        return best

    def measure(self, run: Callable[[], object]) -> dict[str, float]:
        """Seconds and peak memory (MB) of one run; its result is dropped after the time is taken."""
        self.reset_peak()
        start = self.clock()
        kept = run()
        found = {"seconds": self.clock() - start, "peak": self.peak_mb()}
        del kept
        return found

    def reset_peak(self) -> None:
        """Reset peak memory, to exclude loading; on a CPU only Linux supports this."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return

    def peak_mb(self) -> float:
        """Peak memory in MB since `reset_peak`, or since the start if that is unsupported.

        It counts the tensors on a GPU, or the whole process on a CPU.
        """
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e6
        status = Path("/proc/self/status")
        if status.exists():
            line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
            return int(line.split()[1]) / 1e3
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
