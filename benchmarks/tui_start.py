"""Measure start time and key latency of the terminal app by size of the store.

The benchmark fills stores with copies of one synthetic record and runs `layerscope tui` on each in a pseudo-terminal.
It prints medians: seconds from the start of the command until the first captures are on the screen and until all are
read, and milliseconds from the slowest key press until its output reaches the terminal.

Examples:
    .venv/bin/python benchmarks/tui_start.py                        # 10, 1,000 and 20,000 captures, five runs each
    .venv/bin/python benchmarks/tui_start.py --captures 1000 --runs 9
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # measure this checkout, not an installed version

RUNS = 5
ROWS, COLUMNS = 40, 120
# Key and expected output: next preview, other sort key, other sort direction, last row, first row.
KEYS = ((b"j", b"leads"), (b"s", "▲".encode()), (b"S", "▼".encode()), (b"G", b"leads"), (b"g", b"leads"))


def make_store(folder: Path, captures: int) -> None:
    """Fill a folder with renamed copies of one synthetic capture of thirty layers."""
    import msgspec

    from tests.tui.conftest import ranked_record

    folder.mkdir()
    record = ranked_record("small_0", peak=16, day=1)
    for number in range(captures):
        record["name"] = f"small_{number}"
        record["data"]["name"] = f"small_{number}.pt"
        (folder / f"small_{number}.json").write_bytes(msgspec.json.encode(record))
        (folder / f"small_{number}.pt").write_bytes(bytes(record["data"]["bytes"]))


class Terminal:
    """`layerscope tui` in a pseudo-terminal."""

    def __init__(self, store: Path) -> None:
        self._end, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self._start = time.perf_counter()
        command = [sys.executable, "-m", "engine", "tui", str(store)]
        self._process = subprocess.Popen(command, stdin=other, stdout=other, stderr=other, start_new_session=True)
        os.close(other)

    def wait_for(self, text: bytes) -> float:
        """Read until the terminal receives a text; return the seconds since the start."""
        received = b""
        while text not in received:
            if not select.select([self._end], [], [], 60)[0]:
                raise TimeoutError(f"{text!r} did not appear within 60 seconds")
            received += os.read(self._end, 1 << 16)
        return time.perf_counter() - self._start

    def answer(self, key: bytes, text: bytes) -> float:
        """Press a key; return the milliseconds until the terminal receives a text."""
        pressed = time.perf_counter() - self._start
        os.write(self._end, key)
        return (self.wait_for(text) - pressed) * 1000

    def close(self) -> None:
        """Kill the app and close the terminal."""
        self._process.kill()
        self._process.wait()
        os.close(self._end)


def measure(store: Path, captures: int) -> dict[str, float]:
    """Start the app once and time it."""
    terminal = Terminal(store)
    try:
        first = terminal.wait_for(b"leads")  # in the preview of the first capture
        whole = terminal.wait_for(f"{captures} captures".encode()) if captures > 50 else first
        time.sleep(0.5)
        return {"first screen": first, "all read": whole, "slowest key, ms": max(terminal.answer(*key) for key in KEYS)}
    finally:
        terminal.close()


def main() -> None:
    """Run the benchmark and print a line per store size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--captures", type=int, nargs="*", default=[10, 1000, 20000], help="Numbers of captures in the store"
    )
    parser.add_argument("--runs", type=int, default=RUNS, help="Number of runs per store size")
    arguments = parser.parse_args()
    for captures in arguments.captures:
        with tempfile.TemporaryDirectory() as folder:
            store = Path(folder) / "activations"
            make_store(store, captures)
            runs = [measure(store, captures) for _ in range(arguments.runs)]
        medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        print(f"{captures:6} captures:", ", ".join(f"{name} {value:.2f}" for name, value in medians.items()))


if __name__ == "__main__":
    main()
