"""How long the terminal app takes to show something, with stores of any size, and how quickly a key is answered.

Makes stores of copies of one real record, starts the app in a process of its own on each, and prints medians:
the start of Python and its imports, the first screen with captures on it, all captures read, and one key.

Usage:
    .venv/bin/python benchmarks/tui_start.py                        # 10, 1,000 and 20,000 captures, five runs each
    .venv/bin/python benchmarks/tui_start.py --captures 1000 --runs 9
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it measures this checkout

RUNS = 5
SIZE = (120, 40)
KEYS = ("j", "s", "k", "S", "G", "g")


def make_store(folder: Path, captures: int) -> None:
    """Fill a folder with copies of a made-up capture of thirty layers under names of their own."""
    import msgspec

    from tests.tui.conftest import ranked_record

    folder.mkdir()
    record = ranked_record("small_0", peak=16, day=1)
    for number in range(captures):
        record["name"] = f"small_{number}"
        record["data"]["name"] = f"small_{number}.pt"
        (folder / f"small_{number}.json").write_bytes(msgspec.json.encode(record))
        (folder / f"small_{number}.pt").write_bytes(bytes(record["data"]["bytes"]))


def measure(store: Path, began: float, captures: int) -> dict[str, float]:
    """Seconds from the start of the process to each sign of life, and milliseconds a key."""
    from tui.app import LayerscopeApp
    from tui.widgets.rows import RowsView

    imported = time.time() - began
    app = LayerscopeApp(store)

    async def look() -> dict[str, float]:
        async with app.run_test(size=SIZE) as pilot:
            table = app.screen.query_one(RowsView)
            while not table.rows:
                await asyncio.sleep(0.002)
            first = time.time() - began
            while len(table.rows) < captures:
                await asyncio.sleep(0.005)
            whole = time.time() - began
            await pilot.pause()
            answers = []
            for key in KEYS:
                pressed = time.perf_counter()
                await pilot.press(key)
                answers.append((time.perf_counter() - pressed) * 1000)
            return {"imports": imported, "first screen": first, "all read": whole, "slowest key, ms": max(answers)}

    return asyncio.run(look())


def run_apart(store: Path, captures: int) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--measure", str(store), str(time.time()), str(captures)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    output = subprocess.run(command, check=True, capture_output=True, env=environment).stdout
    measured: dict[str, float] = json.loads(output.splitlines()[-1])
    return measured


def main() -> None:
    """Measure as told."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captures", type=int, nargs="*", default=[10, 1000, 20000])
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        store, began, captures = arguments.measure
        print(json.dumps(measure(Path(store), float(began), int(captures))))
        return
    for captures in arguments.captures:
        with tempfile.TemporaryDirectory() as folder:
            store = Path(folder) / "activations"
            make_store(store, captures)
            runs = [run_apart(store, captures) for _ in range(arguments.runs)]
        medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        print(f"{captures:6} captures:", ", ".join(f"{name} {value:.2f}" for name, value in medians.items()))


if __name__ == "__main__":
    main()
