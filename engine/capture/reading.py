"""States on their way from a device to the CPU, which need not be waited for at once.

Knows devices and tensors. Does not know what was run, or who waits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

Rows = dict[int, Tensor]
"""Layer to states, `(tokens, hidden)`, on the CPU."""


class Reading(NamedTuple):
    """States of a pass, which may still be on their way from a GPU.

    Attributes:
        rows: The states, not to be looked at before `arrive`.
        events: What is waited for.
    """

    rows: Rows
    events: list[torch.cuda.Event]

    @classmethod
    def begun_on(cls, devices: Iterable[torch.device], rows: Rows) -> Reading:
        """States whose copies have been ordered of these devices; only CUDA's can be gone on with meanwhile."""
        events = []
        for device in devices:
            if device.type == "cuda":
                with torch.cuda.device(device):
                    events.append(torch.cuda.current_stream().record_event())
            elif device.type != "cpu":
                torch.accelerator.synchronize(device)
        return cls(rows, events)

    def arrive(self) -> Rows:
        """Wait for the states."""
        for event in self.events:
            event.synchronize()
        return self.rows
