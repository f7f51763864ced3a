"""Choose methods of capturing, check what they capture, and print how they compare."""

from __future__ import annotations

import statistics
import sys
from importlib.metadata import version
from importlib.util import find_spec

from benchmarks.machine import Machine
from benchmarks.other_tools import TOOLS
from benchmarks.tasks import Task
from benchmarks.ways import TOLERANCES, WAYS, Read, Way, Work, expected_states, furthest
from engine.models.structure import find_blocks
from engine.models.token_tree import distinct_tokens

ALL_WAYS = {**WAYS, **TOOLS}
ONLY_IF_REQUESTED = {"compiled", "plain_64", "hooks_disk"}


def choose_ways(requested: list[str] | None, task: Task) -> list[str]:
    """Choose the methods to measure: the requested ones, or all that are available.

    Raises:
        SystemExit: A requested method is not available.
    """
    obstacles = {}
    for name, way in ALL_WAYS.items():
        if way.package and find_spec(way.package) is None:
            obstacles[name] = "not installed, see benchmarks/requirements.txt"
        elif task.positions not in way.positions:
            obstacles[name] = f"cannot keep {task.positions} tokens"
    for name in requested or TOOLS:
        if name in obstacles:
            skip(name, obstacles[name], requested)
    return requested or [name for name in ALL_WAYS if name not in obstacles and name not in ONLY_IF_REQUESTED]


def skip(name: str, reason: str, requested: list[str] | None) -> None:
    """Report why a method is skipped.

    Raises:
        SystemExit: The method was requested.
    """
    if requested:
        sys.exit(f"{name}: {reason}")
    print(f"{name}: {reason}; skipped", file=sys.stderr)


def checked(name: str, work: Work, texts: list[str]) -> tuple[Read | None, str]:
    """Prepare one method and check that it captures the same states as layerscope.

    Returns:
        The method, or None if it must not be timed, and a sentence with its deviation from layerscope's states or the
        reason for skipping it.
    """
    way = ALL_WAYS[name]
    sample = texts if name == "compiled" else texts[:: -(-len(texts) // 4)]  # short rows do not run compiled
    expected = expected_states(work, sample, way)  # first, because a tool may change the model
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
    says = f"states differ from layerscope's by at most {distance:.1e} of their norm"
    return (read if distance <= TOLERANCES[work.model.dtype] else None), says


def amount_of_work(work: Work, texts: list[str], machine: Machine) -> dict[str, float]:
    """Count tokens and operations of the matrix products that no method can avoid, and measure the speed of products.

    Returns:
        `tokens`, `products` (operations) and `gemm` (operations per second).
    """
    rows: list[list[int]] = work.tokenizer(texts, add_special_tokens=False)["input_ids"]
    needed = find_blocks(work.model).blocks[: work.layers[-1] + 1]
    weights = sum(weight.numel() for weight in needed.parameters() if weight.dim() == 2)
    return {
        "tokens": sum(map(len, rows)),
        "products": 2 * distinct_tokens(rows) * weights,
        "gemm": machine.gemm_speed(work.model),
    }


def summarize(amount: dict[str, float], entries: list[dict[str, float]]) -> dict[str, float]:
    """Summarize the rounds of one method.

    Args:
        amount: From `amount_of_work`.
        entries: Seconds and peak memory of each round.

    Returns:
        `seconds` (median), `peak` (MB), `tokens`, `share` of the time that is the limit, and `gemm`.
    """
    seconds = statistics.median(entry["seconds"] for entry in entries)
    return {
        "seconds": seconds,
        "peak": max(entry["peak"] for entry in entries),
        "tokens": amount["tokens"],
        "share": amount["products"] / amount["gemm"] / seconds,
        "gemm": amount["gemm"],
    }


def label(way: Way) -> str:
    """Label of a method in the table; tools get their version."""
    return f"{way.distribution} {version(way.distribution)}, {way.says}" if way.distribution else way.says


def print_table(task: Task, found: dict[str, dict[str, float]], rounds: int, *, markdown: bool) -> None:
    """Print the table of one task; speed is relative to `expert`, `plain` or the first row."""
    first = next(iter(found.values()))
    base = found.get("expert", found.get("plain", first))["seconds"]
    print(
        f"\n{task.prompts} x {first['tokens'] / task.prompts:.0f} tokens, {task.says}; {task.dtype};"
        f" medians of {rounds} rounds; matrix products reach {first['gemm'] / 1e9:.0f} GFLOP/s\n"
    )
    bar = "|" if markdown else ""
    print(f"{bar}{'':<46}{bar} speed {bar} seconds {bar} tokens/s {bar} peak MB {bar} of limit {bar}")
    if markdown:
        print("| --- | --- | --- | --- | --- | --- |")
    for way, row in found.items():
        print(
            f"{bar}{label(ALL_WAYS[way]):<46}{bar} {base / row['seconds']:>5.2f} {bar} {row['seconds']:>7.2f} {bar}"
            f" {row['tokens'] / row['seconds']:>8,.0f} {bar} {row['peak']:>7,.0f} {bar} {row['share']:>8.0%} {bar}"
        )
