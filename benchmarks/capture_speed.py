"""Compare speed and memory of captures with plain transformers and other tools.

Every method runs in its own process, and the processes take turns, so that other load on the machine affects all of
them alike. The table shows medians over rounds: speed relative to what an experienced user writes by hand (1.0), tokens
per second, peak memory, and the share of the limit. The limit is the time of the matrix products that no method can
avoid, those of the distinct tokens up to the last requested layer, at the best speed measured on this machine. Tokens
are distinct if the texts before them differ.

Other tools are measured if they are installed; `benchmarks/requirements.txt` explains how. Before a method is timed,
its states for four prompts are compared with layerscope's. The largest deviation goes to standard error, and a method
that captures something else is skipped.

Examples:
    .venv/bin/python benchmarks/capture_speed.py                            # 128 chat prompts, last token, all layers
    .venv/bin/python benchmarks/capture_speed.py --task system --rounds 5   # shared system prompt of 150 tokens
    .venv/bin/python benchmarks/capture_speed.py --task all --markdown      # the tables of docs/performance.md
    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/capture_speed.py --threads 1   # on a busy machine
    .venv/bin/python benchmarks/capture_speed.py --ways expert hooks --model my/folder
    .venv/bin/python benchmarks/capture_speed.py --ways plain hooks nnsight # include another tool, if installed
    .venv/bin/python benchmarks/capture_speed.py --device cuda --prompts 512 --ways plain_64 expert hooks   # on a GPU
    .venv/bin/python benchmarks/capture_speed.py --ways hooks hooks_disk    # cost of weights on disk

`--shapes` measures random models of 8B, 1.5B and 135M parameters in bfloat16 on a GPU, in less than two minutes. It
needs the tokenizer of the default model, or of another, and no network. One process per model measures all methods in
turns after a warm-up, then the host part of a capture (everything outside of the decoder) and the latency of a prompt.
    .venv/bin/python benchmarks/capture_speed.py --shapes
    .venv/bin/python benchmarks/capture_speed.py --shapes 1.5B 135M --compile --tokenizer my/folder
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # measure this checkout, not an installed version

import engine
from benchmarks.comparison import (
    ALL_WAYS,
    ONLY_IF_REQUESTED,
    amount_of_work,
    checked,
    choose_ways,
    print_table,
    skip,
    summarize,
)
from benchmarks.machine import Machine
from benchmarks.random_shapes import GPU_SHAPES, SHAPES, measure_shapes
from benchmarks.tasks import PROMPTS, TASKS, Task, positive, read_prompts
from benchmarks.ways import Work
from engine.capture.selection import parse_layers


@torch.no_grad()
def serve_way(name: str, task: Task, arguments: argparse.Namespace) -> None:
    """Run one method in a child process, once per line on stdin, and report each time.

    It first prints the amount of work and the result of the check. Every message is one line of JSON on stdout.
    """
    torch.set_num_threads(arguments.threads)
    device = arguments.device or "cpu"
    machine = Machine(torch.device(device), arguments.threads)
    where: dict[str, Any] = {"device": device}
    if name == "hooks_disk":
        where = {"device_map": "auto", "max_memory": {"cpu": 0}}
    model, tokenizer, config = engine.load_model_and_tokenizer(arguments.model, dtype=task.dtype, **where)
    texts = read_prompts(tokenizer, task)
    work = Work(model, tokenizer, parse_layers(task.layers, config.num_layers), task.positions)
    amount = amount_of_work(work, texts, machine)
    read, says = checked(name, work, texts)
    print(json.dumps({**amount, "says": says, "timed": read is not None}), flush=True)
    for _line in sys.stdin:
        if read is None:
            return
        print(json.dumps(machine.measure(partial(read, texts))), flush=True)


def task_of(name: str, arguments: argparse.Namespace) -> Task:
    """Look up a task, with the requested concept and perhaps another number of prompts."""
    return replace(TASKS[name], prompts=arguments.prompts or TASKS[name].prompts, concept=arguments.concept)


def measure(name: str, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measure the methods of one task in turns.

    Returns:
        Method to `seconds` (median), `peak` (MB), `tokens`, `share` of the time that is the limit, and the measured
        speed of matrix products (`gemm`, operations per second).
    """
    command = [sys.executable, __file__, "--task", name]
    for option in ("model", "device", "threads", "prompts", "concept"):
        if (value := getattr(arguments, option)) is not None:
            command += [f"--{option}", str(value)]
    children, work = {}, {}
    for way in choose_ways(arguments.ways, task_of(name, arguments)):
        child = subprocess.Popen(
            [*command, "--serve", way],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TQDM_DISABLE": "1"},
        )
        report = read_line(child)  # wait, so that no other child runs during the setup
        if report["timed"]:
            print(f"{way}: {report['says']}", file=sys.stderr)
            children[way], work[way] = child, report
        else:
            child.communicate()
            skip(way, report["says"], arguments.ways)
    rows: dict[str, list[dict[str, float]]] = {way: [] for way in children}
    for _ in range(arguments.rounds):
        for way, child in children.items():
            print("go", file=child.stdin, flush=True)
            rows[way].append(read_line(child))
    for child in children.values():
        child.communicate()
    gemm = max(entry["gemm"] for entry in work.values())
    return {way: summarize({**work[way], "gemm": gemm}, entries) for way, entries in rows.items()}


def read_line(child: subprocess.Popen[str]) -> dict[str, Any]:
    """Read the next message of a child, ignoring anything a tool prints."""
    for line in child.stdout or ():
        if line.startswith("{"):
            answer: dict[str, Any] = json.loads(line)
            return answer
    sys.exit(f"a method failed: {child.args!r}")


def read_arguments(options: list[str] | None = None) -> argparse.Namespace:
    """Read the options, by default those of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=[*TASKS, "all"], default="contrast", help="Task to measure")
    parser.add_argument(
        "--ways",
        nargs="+",
        choices=list(ALL_WAYS),
        help=f"Methods to measure (default: all installed except {', '.join(sorted(ONLY_IF_REQUESTED))})",
    )
    parser.add_argument("--rounds", type=positive, default=3, help="Number of rounds")
    parser.add_argument("--model", default="smollm2", help="Model, as for layerscope capture --model")
    parser.add_argument(
        "--threads",
        type=positive,
        default=torch.get_num_threads(),
        help="Number of torch threads (1: measure processor time, which other load does not affect)",
    )
    parser.add_argument(
        "--device", help="Device of the model: cpu or cuda (default: cpu; --shapes: a GPU if there is one)"
    )
    parser.add_argument("--concept", default=PROMPTS, help="Concept of the prompts (default: benchmarks/prompts.toml)")
    parser.add_argument("--prompts", type=positive, help="Number of prompts, even or 1 (default: that of the task)")
    parser.add_argument(
        "--shapes",
        nargs="*",
        choices=list(SHAPES),
        help=f"Measure random models of these shapes instead of --model and --task (no value: {' '.join(GPU_SHAPES)})",
    )
    parser.add_argument(
        "--tokenizer", help="Folder of a tokenizer with a chat template, for --shapes (default: smollm2)"
    )
    parser.add_argument("--compile", action="store_true", help="With --shapes, measure compiled layers too")
    parser.add_argument("--markdown", action="store_true", help="Print Markdown tables for docs/performance.md")
    parser.add_argument("--serve", choices=list(ALL_WAYS), help=argparse.SUPPRESS)
    arguments = parser.parse_args(options)
    if arguments.shapes is None and (arguments.compile or arguments.tokenizer):
        parser.error("--compile and --tokenizer need --shapes")
    if arguments.shapes is not None and "hooks_disk" in (arguments.ways or []):
        parser.error("hooks_disk needs a saved model, not --shapes")
    return arguments


def main() -> None:
    """Run the benchmark and print the tables."""
    arguments = read_arguments()
    if arguments.shapes is not None:
        measure_shapes(arguments)
        return
    if arguments.serve:
        serve_way(arguments.serve, task_of(arguments.task, arguments), arguments)
        return
    for name in TASKS if arguments.task == "all" else [arguments.task]:
        rows = measure(name, arguments)
        print_table(task_of(name, arguments), rows, arguments.rounds, markdown=arguments.markdown)


if __name__ == "__main__":
    main()
