"""How fast a capture is, next to what one would do by hand or with other tools, and how much memory it takes.

Every way of doing the same work runs in a process of its own, and the processes take turns, so that a machine that is
busy with something else is busy for all of them. Printed are medians over rounds: speed relative to a plain batched
forward pass without any capture (1.0), tokens a second, the most memory held while at work, and what the blocks' matrix
products alone would take at the speed that this machine's matrix products are measured to have, as a share of the time:
above 100% means that fewer of them were computed than the prompts have tokens for.

Other tools are measured where they are installed; `benchmarks/requirements.txt` says how. Before a way is timed, its
states of four prompts are held against layerscope's: standard error says how far they are, and a way that captures
something else is left out.

Examples:
    .venv/bin/python benchmarks/capture_speed.py                            # 128 chat prompts, last token, all layers
    .venv/bin/python benchmarks/capture_speed.py --task system --rounds 5   # a shared system prompt of 150 tokens
    .venv/bin/python benchmarks/capture_speed.py --task all --markdown      # the tables of docs/performance.md
    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/capture_speed.py --threads 1   # on a machine that is not idle
    .venv/bin/python benchmarks/capture_speed.py --ways plain hooks --model my/folder
    .venv/bin/python benchmarks/capture_speed.py --ways plain hooks nnsight # another tool, which must be installed
    .venv/bin/python benchmarks/capture_speed.py --device cuda --prompts 512 --ways plain plain_64 hooks   # on a GPU
    .venv/bin/python benchmarks/capture_speed.py --ways hooks hooks_disk    # what weights on the disk cost
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it measures this checkout

import engine
from benchmarks.machine import Machine
from benchmarks.other_tools import TOOLS
from benchmarks.tasks import TASKS, Task, read_prompts
from benchmarks.ways import TOLERANCES, WAYS, Read, Way, Work, expected_states, furthest
from engine.capture.selection import parse_layers

ALL_WAYS = {**WAYS, **TOOLS}
ONLY_IF_ASKED = {"plain_64", "hooks_disk"}


def checked(name: str, work: Work, texts: list[str]) -> tuple[Read | None, str]:
    """Make one way ready, and see whether it captures what layerscope does.

    Returns:
        The way, None where it should not be timed; and how far its states are from layerscope's, or why it is not.
    """
    way, sample = ALL_WAYS[name], texts[:: -(-len(texts) // 4)]
    expected = expected_states(work, sample, way)  # first, since a tool may change the model
    try:
        read = way.prepare(work)
        found = read(sample)
    except Exception as error:
        if name in WAYS:
            raise
        return None, f"it fails with {type(error).__name__}: {error}"
    if name.startswith("plain"):
        return read, "captures nothing"
    distance = furthest(found, expected)
    says = f"states differ from layerscope's by {distance:.1e} of their norm at most"
    return (read if distance <= TOLERANCES[work.model.dtype] else None), says


@torch.no_grad()
def serve_way(name: str, task: Task, asked: argparse.Namespace) -> None:
    """The child: say how much work there is, then do it once for each line on stdin and say how long it took."""
    torch.set_num_threads(asked.threads)
    machine = Machine(torch.device(asked.device), asked.threads)
    where: dict[str, Any] = {"device": asked.device}
    if name == "hooks_disk":
        where = {"device_map": "auto", "max_memory": {"cpu": 0}}
    model, tokenizer, config = engine.load_model_and_tokenizer(asked.model, dtype=task.dtype, **where)
    texts = read_prompts(tokenizer, task)
    tokens = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    blocks = sum(
        weight.numel() for name, weight in model.named_parameters() if weight.dim() == 2 and ".layers." in name
    )
    told = {"tokens": tokens, "products": 2 * blocks * tokens, "gemm": machine.gemm_speed(model)}
    read, says = checked(
        name, Work(model, tokenizer, parse_layers(task.layers, config.num_layers), task.positions), texts
    )
    print(json.dumps({**told, "says": says, "timed": read is not None}), flush=True)
    machine.reset_peak()
    for _line in sys.stdin:
        if read is None:
            return
        begun = machine.clock()
        kept = read(texts)
        print(json.dumps({"seconds": machine.clock() - begun, "peak": machine.peak_mb()}), flush=True)
        del kept


def choose_ways(asked: list[str] | None, task: Task) -> list[str]:
    """The ways to measure: those asked for, which must be possible here, or all that are.

    Raises:
        SystemExit: One that was asked for is not.
    """
    obstacles = {}
    for name, way in ALL_WAYS.items():
        if way.package and find_spec(way.package) is None:
            obstacles[name] = "not installed, see benchmarks/requirements.txt"
        elif task.positions not in way.positions:
            obstacles[name] = f"cannot keep {task.positions} tokens"
    for name in asked or TOOLS:
        if name in obstacles:
            leave_out(name, obstacles[name], asked)
    return asked or [name for name in ALL_WAYS if name not in obstacles and name not in ONLY_IF_ASKED]


def leave_out(name: str, reason: str, asked: list[str] | None) -> None:
    """Say why a way is not measured.

    Raises:
        SystemExit: It was asked for.
    """
    if asked:
        sys.exit(f"{name}: {reason}")
    print(f"{name}: {reason}; left out", file=sys.stderr)


def task_of(name: str, prompts: int | None) -> Task:
    """A task by its name, with another number of prompts if one is given."""
    return replace(TASKS[name], prompts=prompts or TASKS[name].prompts)


def measure(name: str, asked: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Let the ways of one task take turns.

    Returns:
        Way to `seconds` (median), `peak` (MB), `tokens`, and `share` of the measured speed of matrix products.
    """
    command = [sys.executable, __file__, "--task", name]
    for option in ("model", "device", "threads", "prompts"):
        if (value := getattr(asked, option)) is not None:
            command += [f"--{option}", str(value)]
    children, work = {}, {}
    for way in choose_ways(asked.ways, task_of(name, asked.prompts)):
        child = subprocess.Popen(
            [*command, "--serve", way],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TQDM_DISABLE": "1"},
        )
        told = read_line(child)  # before the next one starts, so that each has the machine for itself
        if told["timed"]:
            print(f"{way}: {told['says']}", file=sys.stderr)
            children[way], work[way] = child, told
        else:
            child.communicate()
            leave_out(way, told["says"], asked.ways)
    rows: dict[str, list[dict[str, float]]] = {way: [] for way in children}
    for _ in range(asked.rounds):
        for way, child in children.items():
            print("go", file=child.stdin, flush=True)
            rows[way].append(read_line(child))
    for child in children.values():
        child.communicate()
    gemm = max(entry["gemm"] for entry in work.values())
    return {
        way: {
            "seconds": (seconds := statistics.median(entry["seconds"] for entry in entries)),
            "peak": max(entry["peak"] for entry in entries),
            "tokens": work[way]["tokens"],
            "share": work[way]["products"] / gemm / seconds,
            "gemm": gemm,
        }
        for way, entries in rows.items()
    }


def read_line(child: subprocess.Popen[str]) -> dict[str, Any]:
    """What a child says next, past what a tool prints of its own."""
    for line in child.stdout or ():
        if line.startswith("{"):
            answer: dict[str, Any] = json.loads(line)
            return answer
    sys.exit(f"a way of doing the work failed: {child.args!r}")


def label(way: Way) -> str:
    """A way in the table: a tool with its version."""
    return f"{way.distribution} {version(way.distribution)}, {way.says}" if way.distribution else way.says


def print_table(task: Task, found: dict[str, dict[str, float]], rounds: int, *, markdown: bool) -> None:
    """One task; the speed is relative to the plain forward, or to the first way where that was left out."""
    base = found.get("plain", next(iter(found.values())))["seconds"]
    first = next(iter(found.values()))
    print(
        f"\n{task.prompts} x {first['tokens'] / task.prompts:.0f} tokens, {task.says}; {task.dtype};"
        f" medians of {rounds} rounds; matrix products reach {first['gemm'] / 1e9:.0f} GFLOP/s\n"
    )
    bar = "|" if markdown else ""
    print(f"{bar}{'':<46}{bar} speed {bar} seconds {bar} tokens/s {bar} peak MB {bar} of GEMM {bar}")
    if markdown:
        print("| --- | --- | --- | --- | --- | --- |")
    for way, row in found.items():
        print(
            f"{bar}{label(ALL_WAYS[way]):<46}{bar} {base / row['seconds']:>5.2f} {bar} {row['seconds']:>7.2f} {bar}"
            f" {row['tokens'] / row['seconds']:>8,.0f} {bar} {row['peak']:>7,.0f} {bar} {row['share']:>7.0%} {bar}"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=[*TASKS, "all"], default="contrast", help="what is captured")
    parser.add_argument(
        "--ways",
        nargs="+",
        choices=list(ALL_WAYS),
        help=f"how; unless told, all that are installed but {' and '.join(sorted(ONLY_IF_ASKED))}",
    )
    parser.add_argument("--rounds", type=int, default=3, help="how many times each")
    parser.add_argument("--model", default="smollm2", help="as layerscope capture --model takes it")
    parser.add_argument(
        "--threads",
        type=int,
        default=torch.get_num_threads(),
        help="of torch; with 1, seconds are those of the processor, whatever else the machine is busy with",
    )
    parser.add_argument("--device", default="cpu", help="where the model is: cpu, or cuda for a GPU")
    parser.add_argument("--prompts", type=int, help="another number of prompts than the task's: an even one, or 1")
    parser.add_argument("--markdown", action="store_true", help="print tables for docs/performance.md")
    parser.add_argument("--serve", choices=list(ALL_WAYS), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve_way(asked.serve, task_of(asked.task, asked.prompts), asked)
        return
    for name in TASKS if asked.task == "all" else [asked.task]:
        print_table(task_of(name, asked.prompts), measure(name, asked), asked.rounds, markdown=asked.markdown)


if __name__ == "__main__":
    main()
