"""The processes that share a capture, as `torchrun` or `accelerate launch` started them.

Knows ranks, and how to wait for the others. Does not know what they share. Brings in torch only to wait.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

from engine.errors import CaptureError

_LONGEST = timedelta(
    days=30
)  # that one may wait for another, whose share may take as long; the dead are noticed at once
_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@dataclass(frozen=True)
class Processes:
    """The processes that share some work, seen from one of them; alone unless told.

    Attributes:
        rank: Number of this one.
        count: How many there are, on all machines.
        local_rank: Number of this one among those of its machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the one that speaks, begins and ends."""
        return self.rank == 0

    @property
    def said(self) -> str:
        """What this one calls itself, in the launcher's words; empty if it is alone."""
        return f"rank {self.rank} of {self.count}" if self.count > 1 else ""

    def owns(self, number: int) -> bool:
        """Whether a piece of the work is this one's: they take turns."""
        return number % self.count == self.rank

    def wait(self) -> None:
        """Go on when all are here; every one must call it as often. The first call joins them.

        Raises:
            CaptureError: Another one has ended, or they cannot be joined.
        """
        if self.count == 1:
            return
        from accelerate import PartialState

        try:
            # Through the processor, wherever the model runs: nothing but waiting is done together.
            joined = PartialState(cpu=True, timeout=_LONGEST)
            if joined.num_processes == self.count:
                joined.wait_for_everyone()
        except RuntimeError as error:
            raise CaptureError(
                "another process has ended, for which this one waited",
                expected="every process to go on to the end",
                next_step="see what it said, then give the same command again: what is saved is not run again",
            ) from error
        if joined.num_processes != self.count:  # set up before, without GPUs, it takes each for the only one
            raise CaptureError(
                f"accelerate was set up for {joined.num_processes} of {self.count} processes",
                next_step="call find_processes().wait() before anything of accelerate",
            )


ALONE = Processes()


def find_processes() -> Processes:
    """What a launcher that follows torch's conventions said; alone without a launcher.

    Example:
        >>> find_processes()
        Processes(rank=0, count=1, local_rank=0)
    """
    told = [os.environ.get(name, "") for name in _NAMES]
    if not all(value.isdecimal() for value in told):
        return ALONE
    return Processes(*map(int, told))
